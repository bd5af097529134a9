"""--mode=inspect: examples stage by stage."""
