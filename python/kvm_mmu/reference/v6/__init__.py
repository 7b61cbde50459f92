"""The fault of a direct MMU where the level is requested first, v5.10 and later, and its mapping on shadow pages."""
