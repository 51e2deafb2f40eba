"""The ways on which errors pass samplers, which would swallow them or make others of them."""
