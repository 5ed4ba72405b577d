"""The SGLang side: the only part of the package that imports sglang or torch.

`plugin` is what SGLang finds and calls; everything else is imported when a server uses it.
"""
