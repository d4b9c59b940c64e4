"""View parameters: settings, presets, the generator that draws them."""
