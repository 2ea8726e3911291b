"""The kernels written slowly and obviously: what every backend is tested against. Nothing here is fast."""
