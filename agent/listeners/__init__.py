"""Socket loops that read bytes and hand them on; they decide nothing."""
