"""What runs cost: counted, and measured by a few steps before they are made."""
