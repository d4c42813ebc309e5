"""Drop-ins for other libraries' samplers, one module or package each. Importing this imports none of them."""
