"""Which edges between the parts of a model carry a behaviour. The native part is cpp's circuits module."""

__all__: list[str] = []
