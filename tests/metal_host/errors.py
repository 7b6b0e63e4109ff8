"""What the shim raises. Both mean: this would be wrong on a Mac, or is not known to be right."""


class MetalSourceError(SyntaxError):
    """The source does not compile as Metal; PyTorch raises a SyntaxError there too."""


class MetalLaunchError(RuntimeError):
    """A launch is wrong: what the host bound, or what the kernel did."""
