"""GeSSL (Wang et al., 2024): reach in a few steps on each task where more steps would lead."""
