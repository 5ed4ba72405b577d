"""Mooncake's own names and numbers over ours: what code written for the original calls.

The distribution in `dropin/` gives these modules the import name `mooncake`. Nothing else of the
package imports from here.
"""
