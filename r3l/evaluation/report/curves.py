"""Section of the report: learning curves of success, rewards, reward health and the learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r3l.evaluation.report import figures, html
from r3l.evaluation.report.figures import BLUE, GREEN, GREY, ORANGE, Curve, Level
from r3l.evaluation.report.html import attempt
from r3l.evaluation.report.summary import RunSummary
from r3l.evaluation.report.visits import MissingError


def learning(summary: RunSummary) -> str:
    """Draw success and error over env steps, then the metrics of the learner."""
    success = attempt(lambda: _success_curves(summary))
    rewards = "<h3>Rewards</h3>" + _metric_plots(summary, REWARDS)
    health = "<h3>Health of the learned reward</h3>" + _reward_events(summary) + _metric_plots(summary, HEALTH)
    return success + rewards + health + "<h3>Inside the learner</h3>" + _metric_plots(summary, INSIDE)


def _reward_events(summary: RunSummary) -> str:
    """List the events about the learned reward."""
    found = [event for event in summary.events if event["kind"].startswith("reward-")]
    if summary.config.reward != "classifier":
        return html.note("This run has no learned reward: its reward is the task's true reward.")
    if not found:
        return html.note("No event: at every check the classifier separated held-out goal images from other frames.")
    return "".join(html.note(f"{event['time']} {event['kind']}: {event['message']}.") for event in found)


def _success_curves(summary: RunSummary) -> str:
    found = summary.evaluations
    if not found:
        every = summary.config.evaluate_every
        hint = f"the first one comes at step {every:,}" if every else "evaluate_every is 0"
        raise MissingError(f"no evaluation yet: {hint}")
    steps = [record["step"] for record in found]
    low, high = ([record["success_interval"][side] for record in found] for side in (0, 1))
    lines = [Curve("success", steps, [record["success"] for record in found], low=low, high=high)]
    judged = [(record["step"], record["judge"]["judged_success"]) for record in found if "judge" in record]
    if judged:
        at, shares = [step for step, _ in judged], [share for _, share in judged]
        lines.append(Curve("success by the judge", at, shares, GREEN, "--"))
    scale, unit = summary.unit
    error = Curve("median final error", steps, [record["median_final_error"] * scale for record in found])
    level = Level("largest error of a success", summary.task.success_error * scale)
    success_plot = figures.curves(lines, "share of episodes", y_range=(-0.02, 1.02))
    error_plot = figures.curves([error], f"error ({unit})", level=level, y_range=(0, max(1, 1.08 * max(error.y))))
    note = f"From {found[-1]['episodes']} unsolved start states per evaluation, in a second robot that does not train."
    return html.grid(
        [
            html.plot(success_plot, "Success", note),
            html.plot(error_plot, "Median final error", "Often falls before success rises."),
        ]
    )


@dataclass(frozen=True)
class MetricPlot:
    """One plot of metrics."""

    title: str
    note: str
    y_label: str
    lines: tuple[tuple[str, str, str, str], ...]
    """Metric, label, colour, style."""
    is_log: bool = False
    level: Callable[[RunSummary], Level] | None = None


def _pair(key: str) -> tuple[tuple[str, str, str, str], ...]:
    return ((f"task/{key}", "task policy", BLUE, "-"), (f"perturbation/{key}", "perturbation policy", ORANGE, "--"))


def _target_entropy(summary: RunSummary) -> Level:
    return Level("target", summary.config.sac.target_entropy_per_action * len(summary.task.rig.joints))


REWARDS = (
    MetricPlot(
        "Task reward",
        "The newest reward and the average over the replay. The newest should rise above the average.",
        "reward per step",
        (("recent/task_reward", "newest 250 steps", BLUE, "-"), ("task/reward", "whole replay", GREY, "--")),
    ),
    MetricPlot(
        "Novelty reward",
        "In standard deviations of the prediction error. It falls on known ground and rises on new ground.",
        "reward per step",
        (
            ("recent/novelty_reward", "newest 250 steps", ORANGE, "-"),
            ("perturbation/reward", "whole replay", GREY, "--"),
        ),
    ),
)
HEALTH = (
    MetricPlot(
        "Score of the classifier",
        "On goal images that it never learned from. It should stay high, and far above other frames.",
        "probability of success",
        (
            ("health/held_out", "held-out goal images", GREEN, "-"),
            ("health/elsewhere", "frames of exploration", GREY, "--"),
        ),
    ),
    MetricPlot(
        "Ranking by the classifier",
        "How well it ranks held-out goal images above other frames. 1 is perfect; an ROC-AUC of 0.5 is chance.",
        "ROC-AUC, average precision",
        (("health/auc", "ROC-AUC", BLUE, "-"), ("health/average_precision", "average precision", ORANGE, "--")),
    ),
    MetricPlot(
        "Steps judged successful",
        "Of the newest 250 steps. If the classifier accepts steps that the judge rejects, the policy may fool it.",
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
        "Should level off, at most at the largest reward / (1 - discount) plus some entropy.",
        "mean Q",
        _pair("value"),
    ),
    MetricPlot("Critic losses", "May rise with the values but must not explode.", "loss", _pair("critic_loss"), True),
    MetricPlot("Actor losses", "About the negative value of the policy's actions.", "loss", _pair("actor_loss")),
    MetricPlot(
        "Temperatures",
        "The weight of the entropy. It falls while a policy has more entropy than its target.",
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
        "A loss near 0.69 and a probability near 0.5 mean that it cannot separate visited states from goal images.",
        "loss (nats), probability",
        (("classifier_loss", "loss", BLUE, "-"), ("goal_probability", "probability on goal images", GREEN, "--")),
    ),
    MetricPlot(
        "Novelty model",
        "Its error on visited states. It falls as they become familiar.",
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


def _metric_plots(summary: RunSummary, plots: Sequence[MetricPlot]) -> str:
    if not summary.metrics:
        return html.note("Missing: no metrics yet. They are written every 250 env steps.")
    drawn, single = [], []
    for plot in plots:
        lines = [Curve(label, *summary.series(key), colour, style) for key, label, colour, style in plot.lines]
        lines = [line for line in lines if len(line.x)]
        if any(len(line.x) > 1 for line in lines):
            drawn.append(html.plot(_drawn(summary, plot, lines), plot.title, plot.note))
        else:
            single += [f"{plot.title}, {line.label}: {line.y[0]:.3g} at step {line.x[0]:,}" for line in lines]
    text = html.grid(drawn) if drawn else html.note("Missing: nothing is learned before exploration ends.")
    why = "Measured once, because a model that is fitted after exploration stays the same"
    return text + (html.paragraph(f"{why}: {'; '.join(single)}.") if single else "")


def _drawn(summary: RunSummary, plot: MetricPlot, lines: Sequence[Curve]) -> bytes:
    return figures.curves(
        lines,
        plot.y_label,
        level=plot.level(summary) if plot.level else None,
        learning_from=summary.config.phases.exploration_steps,
        is_log=plot.is_log,
    )
