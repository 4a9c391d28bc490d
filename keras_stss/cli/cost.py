"""``keras-stss cost``."""

import json

from keras_stss.config import ConfigError, load_config


def add(commands):
    cost = commands.add_parser(
        "cost", help="count a model's parameters and multiply-adds by layer and stage, or those of the papers' models"
    )
    cost.add_argument("--config", help="YAML file, or a bare name in configs/")
    cost.add_argument("overrides", nargs="*", metavar="key.path=value", help="values to use instead of the file's")
    cost.add_argument("--papers", action="store_true", help="the rows of the papers' tables beside their figures")
    cost.add_argument("--frames", type=int, help="frames of the clip (default: data.frames)")
    cost.add_argument("--size", type=int, help="side of a frame in pixels (default: data.crop)")
    cost.add_argument("--classes", type=int, default=174, help="classes of the head (default: %(default)s)")
    cost.add_argument("--json", action="store_true", help="print the figures as JSON")
    cost.add_argument("--markdown", metavar="FILE", help="papers: put the table into its place in a Markdown file, too")
    cost.set_defaults(command=_cost)


def _cost(options):
    if bool(options.config) == options.papers:
        raise ConfigError("cost takes either --config NAME or --papers")
    if options.papers and (options.overrides or options.frames or options.size or options.classes != 174):
        raise ConfigError(
            "the papers' rows say themselves what they count: only --json and --markdown go with --papers"
        )
    if options.markdown and not options.papers:
        raise ConfigError("--markdown goes with --papers")
    config = None if options.papers else load_config(options.config, options.overrides)
    from keras_stss.cost import cost, table

    if options.papers:
        from keras_stss.bench.tables import find_place, write_into
        from keras_stss.cost.papers import compare

        if options.markdown:
            find_place(options.markdown, "cost")  # before a minute of counting
        found = compare()
        if options.markdown:
            write_into(options.markdown, "cost", table.markdown_papers(found))
    else:
        found = cost(config, options.classes, options.frames, options.size)
    render = table.render_papers if options.papers else table.render_model
    print(json.dumps(found) if options.json else render(found))
