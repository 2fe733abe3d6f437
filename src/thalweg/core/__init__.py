"""What everyone shares: the config base, errors, addressed noise, value types and protocols."""
