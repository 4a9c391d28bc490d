"""What the workers of a run do once for all, and what they have to agree on."""

from keras_stss.config import ConfigError
from keras_stss.training.saving.checkpoint import CheckpointError
from keras_stss.training.workers.distribute import from_chief, gather, is_chief
from keras_stss.training.workers.supervise import all_end


def on_chief(strategy, action):
    """Runs an action on the chief; all workers call this.

    Args:
        strategy: ``tf.distribute.Strategy``.
        action: function without arguments.

    Raises:
        ConfigError: on all workers, with the same words, where the action raised an error that the user can mend.
    """
    fault = None
    if is_chief(strategy):
        try:
            action()
        except (ConfigError, CheckpointError, OSError) as error:
            fault = str(error)
    if fault := from_chief(strategy, fault):
        all_end()
        raise ConfigError(fault)


def check_same_data(strategy, data_set):
    """Raises ConfigError where the workers have not read the same lists; all of them call this."""
    mine = [len(data_set.train), len(data_set.validation), len(data_set.labels), data_set.digest()]
    for number, other in enumerate(gather(strategy, mine)):
        if other != mine:
            all_end()
            same = " (other clips, parts or labels)" if other[:3] == mine[:3] else ""
            raise ConfigError(
                f"the workers' data sets differ: {mine[0]} and {mine[1]} clips, {mine[2]} labels here; "
                f"{other[0]}, {other[1]} and {other[2]} on worker {number}{same}. Give all of them the same lists"
            )
