"""The benchmark on a real GPU: SGLang with our tier, beside recomputation and other tiers."""
