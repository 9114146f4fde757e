"""Images: found, verified, generated or made of photos, and handed out in minibatches."""
