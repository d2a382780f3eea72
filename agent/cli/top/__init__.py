"""The live screen of `top`: what it asks, what it makes of the answers, and the terminal."""
