"""ABRL: an encoder trained by what its head, trained on its features, makes of other images (Eq. 1)."""
