"""(seed, step) to a batch: order, augmentation, template, layout, tf.data graph."""
