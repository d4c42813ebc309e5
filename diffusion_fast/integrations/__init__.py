"""Drop-ins for other libraries' samplers, one module each, which import nothing of what they serve."""
