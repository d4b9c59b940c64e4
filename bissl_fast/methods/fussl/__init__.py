"""FUSSL (Mohamadi et al.): blocks vote on fuzzy labels of their images, and one of them learns these."""
