"""Where one scan of a head lies in another: rigid registration, and whether it can be right."""
