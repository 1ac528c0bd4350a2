"""The report's learning curves: success over env steps, then what happens inside the learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r3l.evaluation.report import figures
from r3l.evaluation.report import html as page
from r3l.evaluation.report.figures import BLUE, GREEN, GREY, ORANGE, Curve, Level
from r3l.evaluation.report.html import attempt
from r3l.evaluation.report.summary import RunSummary
from r3l.evaluation.report.visits import MissingError


def learning(facts: RunSummary) -> str:
    """Draw success and error over env steps, then what happens inside the learner."""
    return (
        attempt(lambda: _success_curves(facts))
        + "<h3>Rewards</h3>"
        + _metric_plots(facts, REWARDS)
        + "<h3>Health of the learned reward</h3>"
        + _ailments(facts)
        + _metric_plots(facts, HEALTH)
        + "<h3>Inside the learner</h3>"
        + _metric_plots(facts, INSIDE)
    )


def _ailments(facts: RunSummary) -> str:
    """Say what the run's events said about the reward."""
    found = [event for event in facts.events if event["kind"].startswith("reward-")]
    if facts.config.reward != "classifier":
        return page.note("This run has no learned reward: it was rewarded by the task's true reward.")
    if not found:
        return page.note("No event: at every check the classifier told held-out goal images from everything else.")
    return "".join(page.note(f"{event['time']} {event['kind']}: {event['message']}.") for event in found)


def _success_curves(facts: RunSummary) -> str:
    found = facts.evaluations
    if not found:
        every = facts.config.evaluate_every
        hint = f"the first one comes at step {every:,}" if every else "evaluate_every is 0"
        raise MissingError(f"no evaluation yet: {hint}")
    steps = [record["step"] for record in found]
    low, high = ([record["success_interval"][side] for record in found] for side in (0, 1))
    lines = [Curve("success", steps, [record["success"] for record in found], low=low, high=high)]
    judged = [(record["step"], record["judge"]["judged_success"]) for record in found if "judge" in record]
    if judged:
        at, shares = [step for step, _ in judged], [share for _, share in judged]
        lines.append(Curve("success as the judge sees it", at, shares, GREEN, "--"))
    scale, unit = facts.unit
    error = Curve("median final error", steps, [record["median_final_error"] * scale for record in found])
    level = Level("largest error of a success", facts.task.success_error * scale)
    count = found[-1]["episodes"]
    return page.grid(
        [
            page.plot(
                figures.curves(lines, "share of episodes", y_range=(-0.02, 1.02)),
                "Success",
                f"From {count} unsolved start states per evaluation, in a second robot that does not train.",
            ),
            page.plot(
                figures.curves([error], f"error ({unit})", level=level, y_range=(0, max(1, 1.08 * max(error.y)))),
                "Median final error",
                "Often falls before success rises.",
            ),
        ]
    )


@dataclass(frozen=True)
class MetricPlot:
    """One plot of metrics.jsonl."""

    title: str
    note: str
    y_label: str
    lines: tuple[tuple[str, str, str, str], ...]
    """Metric, label, colour, style."""
    is_log: bool = False
    level: Callable[[RunSummary], Level] | None = None


def _pair(key: str) -> tuple[tuple[str, str, str, str], ...]:
    return ((f"task/{key}", "task policy", BLUE, "-"), (f"perturbation/{key}", "perturbation policy", ORANGE, "--"))


def _target_entropy(facts: RunSummary) -> Level:
    return Level("target", facts.config.sac.target_entropy_per_action * len(facts.task.rig.joints))


REWARDS = (
    MetricPlot(
        "Task reward",
        "What the robot gets now beside the average over everything it remembers: now should rise above it.",
        "reward per step",
        (("recent/task_reward", "newest 250 steps", BLUE, "-"), ("task/reward", "all of the replay", GREY, "--")),
    ),
    MetricPlot(
        "Novelty reward",
        "In standard deviations of the prediction error. It falls as the world becomes known and rises on new ground.",
        "reward per step",
        (
            ("recent/novelty_reward", "newest 250 steps", ORANGE, "-"),
            ("perturbation/reward", "all of the replay", GREY, "--"),
        ),
    ),
)
HEALTH = (
    MetricPlot(
        "Score of the classifier",
        "On goal images it never learned from: should stay high, and far above other frames.",
        "probability of success",
        (
            ("health/held_out", "held-out goal images", GREEN, "-"),
            ("health/elsewhere", "frames of exploration", GREY, "--"),
        ),
    ),
    MetricPlot(
        "Ranking by the classifier",
        "How well it ranks held-out goal images above other frames: 1 is perfect; an area of 0.5 is chance.",
        "ROC-AUC, average precision",
        (
            ("health/auc", "ROC-AUC", BLUE, "-"),
            ("health/average_precision", "average precision", ORANGE, "--"),
        ),
    ),
    MetricPlot(
        "Steps judged successful",
        "Of the newest 250 steps. Where the classifier praises what the judge refuses, the policy may be fooling it.",
        "share of steps",
        (
            ("health/rewarded", "by the classifier that rewards", BLUE, "-"),
            ("health/judged_success", "by the frozen judge", GREEN, "--"),
        ),
    ),
)
INSIDE = (
    MetricPlot(
        "Values",
        "Should level off; at most the largest reward / (1 - discount), and some entropy.",
        "mean Q",
        _pair("value"),
    ),
    MetricPlot("Critic losses", "May rise with the values but must not explode.", "loss", _pair("critic_loss"), True),
    MetricPlot("Actor losses", "About the negative value of what the policy does.", "loss", _pair("actor_loss")),
    MetricPlot(
        "Temperatures",
        "The price of entropy; falls while a policy is more random than asked.",
        "temperature",
        _pair("temperature"),
        True,
    ),
    MetricPlot(
        "Entropies",
        "Should come down to the target and stay there.",
        "entropy (nats)",
        _pair("entropy"),
        level=_target_entropy,
    ),
    MetricPlot(
        "Success classifier",
        "A loss near 0.69 and a probability near 0.5 mean that it cannot tell visited states from goal images.",
        "loss (nats), probability",
        (("classifier_loss", "loss", BLUE, "-"), ("goal_probability", "probability on goal images", GREEN, "--")),
    ),
    MetricPlot(
        "Novelty model",
        "Its error on visited states; it falls as they become familiar.",
        "squared error",
        (("novelty_error", "squared error", ORANGE, "-"),),
        True,
    ),
    MetricPlot(
        "Encoder reconstruction",
        "Squared error summed over the pixels.",
        "squared error",
        (("vae/reconstruction", "squared error", BLUE, "-"),),
    ),
    MetricPlot("Encoder KL", "How much the latent tells about an image.", "nats", (("vae/kl", "KL", BLUE, "-"),)),
)


def _metric_plots(facts: RunSummary, plots: Sequence[MetricPlot]) -> str:
    if not facts.metrics:
        return page.note("Not there: no metrics yet. They are written every 250 env steps.")
    drawn, single = [], []
    for plot in plots:
        lines = [Curve(label, *facts.series(key), colour, style) for key, label, colour, style in plot.lines]
        lines = [line for line in lines if len(line.x)]
        if any(len(line.x) > 1 for line in lines):
            drawn.append(page.plot(_drawn(facts, plot, lines), plot.title, plot.note))
        else:
            single += [f"{plot.title}, {line.label}: {line.y[0]:.3g} at step {line.x[0]:,}" for line in lines]
    text = page.grid(drawn) if drawn else page.note("Not there: nothing has been learned yet; exploration comes first.")
    why = "Measured only once, since what is fitted after exploration then stays as it is"
    return text + (page.paragraph(f"{why}: {'; '.join(single)}.") if single else "")


def _drawn(facts: RunSummary, plot: MetricPlot, lines: Sequence[Curve]) -> bytes:
    return figures.curves(
        lines,
        plot.y_label,
        level=plot.level(facts) if plot.level else None,
        learning_from=facts.config.phases.exploration_steps,
        is_log=plot.is_log,
    )
