"""What a person should look at in a case, and why a label does not lie on its image."""
