"""The networks: built by their configuration, or as earlier stages left them."""
