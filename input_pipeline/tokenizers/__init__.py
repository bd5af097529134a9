"""Text to ids: one interface, and what stands behind it."""
