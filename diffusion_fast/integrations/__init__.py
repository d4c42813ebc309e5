"""Drop-ins for other libraries: `integrations.diffusers`. Importing this imports none of them."""
