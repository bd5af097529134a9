"""From raw text to batches: an offline part, once per corpus, and an online part, every step.

Offline: sources (files to records), datasets/ (built-in corpora), normalization, cleaning,
splitting, audit, preparation; fitted on the training split: features, vocabulary. Online:
tokenization, stream, augmentation, layout, pipeline. This is the only package that imports
TensorFlow; it imports neither models/ nor training/.
"""
