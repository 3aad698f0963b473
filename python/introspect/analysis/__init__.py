"""What a model computes: metrics, patching, lenses, heads, probes, erasure. The native part is cpp's analysis module."""

__all__: list[str] = []
