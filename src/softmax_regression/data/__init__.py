"""Images and minibatches: from files, which are found and verified, from photos, or generated."""
