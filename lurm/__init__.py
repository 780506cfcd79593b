"""lurm: an event log in; general-purpose user embeddings, served, out.

The map of the house, from the ground up. Each module may import only what stands above it here;
``pyproject.toml`` and ``tests/architecture`` hold the drawing.

    errors        what can go wrong, as one tree
    settings      every LURM_* variable; the only reader of the environment
    bounds        what configuration values may be
    ahead         what comes next, made in a thread
    allocator     memory that was let go of, used again
    compiled      loops as machine code
    progress      how a long job says how far it is
    phrases       conditions as a line of text, and what was meant
    moments       epoch milliseconds, or ISO 8601
    client        a service elsewhere, asked from Python
    artifacts     immutable folders with a manifest: draft, publish, verify, open
    remote        Redis, never by its client's defaults
    arrays        plain arrays on disk: append, map; in memory: written once
    lanes         numbers side by side, as many as a processor takes at once
    identifiers   string id <-> row, memory-mapped
    texts         columns of texts as hashes and codes
    keyed         users and items looked up by the text itself, many at once
    quotes        CSV whose quotes may be astray, mended
    quarantine    rows that are not taken, and why
    columns       cells of any type -> text, numbers, epoch milliseconds
    readers       Parquet, CSV and JSONL files as chunks of columns
    events        event logs of any shape -> clean batches, bad rows set aside
    erasure       who was erased, and when, without saying who
    logged        one event as a log holds it
    remains       where on disk an id of a user still stands
    happenings    the calendar's table as a dataset writes it
    people        the users table, each attribute of its kind
    dataset       a log and its tables of items, users and calendar
    attributes    what is known of users beside what they do, by row
    history       every event of every user, oldest first: the only truth
    spectrum      truncated singular values of a sparse matrix
    meanings      interests in words
    touches       who touched what and when: three columns, fast
    lives         events as records, grouped into sorted lives
    calendars     what is on, for whom, and since when that is known
    survey        each attribute of users, in figures
    conditions    filters as documents, and as lines of text
    starter       a dataset's config, with all that was found of it
    ingest        clean batches -> the history base, out of core
    sequences     histories -> windows
    transformer   attention, blocks, places, caches: what the models of sequences share
    items         item embeddings, from co-occurrence and text
    cells         the nearest of many centroids, most of them passed over, the others compared in 8 bits
    validate      what lurm makes of a log, before anything is built
    clustering    spherical k-means, up to millions of vectors
    interests     the interest vocabulary: items -> interests
    activity      how somebody acts, whatever on
    rhythm        how somebody comes back: pace, gaps and what is usual       (LUMOS)
    stack         a trained transformer as compiled loops, for answers
    days          what each user did on each day, empty days left out          (LUMOS)
    boi           Bag-of-Interests: histories x windows -> sparse CSR          (LURM)
    inference     its vectors without gradients, compiled
    prospect      what may come next: questions and answers
    alignment     a new space turned onto an old one
    ranking       the largest of scores, and of each group of them
    heldout       what seeds that were held out tell of an audience
    glossary      interests found: by words, by an item, by size
    tally         bags straight from a log                                    (LURM)
    filters       which users, by what is known of them and what they did
    reasons       why: interests that people share, or have more often
    targets       what is asked of the future, and what the log answered        (LUMOS)
    tokens        users as LUMOS reads them                                   (LUMOS)
    calibrations  what corrects raw answers, and what amounts are by it       (LUMOS)
    balance       the mix that an audience is to have
    beginnings    what closed forms say to a network, before and after it     (LUMOS)
    changes       what another calendar changes, and how sure that is         (LUMOS)
    trees         what stands beside a network, and sees its edges            (LUMOS)
    smen          multi-anchor encoder: bags -> embedding                      (LURM)
    behavegpt     causal blocks over behaviours in context: what comes next    (BehaveGPT)
    lumos         many behaviors at once, given what is known of the future   (LUMOS)
    horizons      what is told of own days, carried over to other ones         (LUMOS)
    live          what users did since the base was built, kept durably
    told          what LUMOS says, corrected, and no answer against another    (LUMOS)
    forecasts     what users will do: calibrated, with intervals, what if
    encoder       the one protocol serving knows
    histories     base + live: every event of every user, up to this moment
    index         nearest users
    moved         vectors of those who moved since the base was built
    cache         the self-describing, compared cache
    audience      who is like these people, and how sure that is
    release       one immutable folder that serves
    past          what was known of users back then
    export        all embeddings as one table
    lookalikes    audiences of a release: ids in, users and reasons out
    jobs          long work, asked about while it runs
    rules         who is meant by a saved audience: users, who is like some or passes a filter, others put together
    meant         what interests meant that a saved filter names
    definitions   saved audiences: who is meant
    members       who that is, of a release
    saved         all of them, what they share, and where one user stands now
    purge         the bytes of erased users, off the disk
    doctor        is this machine fit to build and serve?
    console       what the commands share
    audiences     the commands of saved audiences
    lookups       the command that looks interests up
    __main__      the front door: `lurm`

Importing this package loads nothing heavy.
"""

__version__ = "0.1.0"
