"""BiSSL (Zakarias et al., 2025): pretext and downstream training as one bilevel problem."""
