"""A run as it goes: its state, progress, steps and log, drawn from the frames of its timeline.

Frames come in batches. ``take`` only remembers what they say; ``render`` then brings the page up to date, once per
batch. However long the run, the page shows a bounded part of it.
"""

from durable_page import TERMINAL
from elements import find, make, show, write
from wording import STATUSES, clock_time, count, duration, interruptions, moment, size

LATEST_STEPS = 12
LOG_LINES = 200
MARKS = 120
ANNOUNCED = (25, 50, 75)
PASS_STATES = {"current": " (now)", "done": " (done)", "stopped": " (stopped here)", "waiting": " (to come)"}

PASSES = (
    ("inspect", "Look at the file"),
    ("scan", "Find the types of the columns"),
    ("create tables", "Create the tables"),
    ("rows", "Insert the rows"),
    ("summary", "Compute the statistics"),
    ("finish", "Finish"),
)


class RunView:
    """Shows one run, from its first frame on."""

    def __init__(self, run):
        self.status = run.status
        self.attempt = run.attempt
        self.progress = run.progress
        self._passes = {key: _Pass(title) for key, title in PASSES}
        self._order = [key for key, _ in PASSES]
        self._attempt_now = 0
        self._attempt_of_last_step = 1
        self._steps = []
        self._log = []
        self._announced = 0
        name = run.input.get("name") or run.input["path"]
        self.name = name
        write("run-title", name)
        self._started = moment(run.created_at)
        for id in ("passes", "steps", "log", "run-ended"):
            find(id).replaceChildren()
        find("passes").append(*[self._passes[key].element for key in self._order])
        self.render()

    # --- what frames say ----------------------------------------------------------------------------------------------

    def take(self, frames):
        """Remember what some frames say."""
        for frame in frames:
            if frame.kind == "run_status":
                self._take_status(frame)
            elif frame.kind == "step_status":
                self._take_step(frame)
            elif frame.kind == "progress":
                self.progress = frame
            elif frame.kind == "log":
                self._say(frame.ts, frame.level, frame.message)
        self._steps = self._steps[-LATEST_STEPS:]
        self._log = self._log[-LOG_LINES:]

    def _take_status(self, frame):
        self.status = frame.status
        self.attempt = max(self.attempt, frame.attempt)
        self._attempt_now = frame.attempt
        if frame.status == "leased" and frame.attempt > 1:
            self._say(frame.ts, "resume", f"Interrupted, and taken up again: attempt {frame.attempt}")

    def _take_step(self, frame):
        if frame.status == "running":
            return
        self._steps.append((frame.name, frame.status, frame.attempt, getattr(frame, "duration", None)))
        key = frame.name.rstrip("0123456789").rstrip()
        if key not in self._passes:
            self._passes[key] = _Pass(key)
            self._order.append(key)
            find("passes").append(self._passes[key].element)
        was_interrupted = self._attempt_now > self._attempt_of_last_step
        self._attempt_of_last_step = self._attempt_now
        self._passes[key].add(frame.status, was_interrupted, getattr(frame, "duration", None) or 0)

    def _say(self, milliseconds, level, message):
        self._log.append((milliseconds, level, message))

    def percent(self):
        """How far the run has come, such as "38 %"; empty before it has begun, and 100 % when it is over."""
        progress = self.progress
        if progress is None or not progress.total:
            return ""
        most = 100 if self.status == "completed" else 99
        return f"{min(most, 100 * progress.current / progress.total):.0f} %"

    # --- the page -----------------------------------------------------------------------------------------------------

    def render(self):
        """Bring the page up to date."""
        write("run-status", STATUSES[self.status])
        find("run-status").setAttribute("data-status", self.status)
        show("running", self.status not in TERMINAL)
        survived = interruptions(self.attempt)
        write("survived", survived)
        show("survived", bool(survived))
        self._render_progress()
        self._render_passes()
        self._render_steps()
        self._render_log()

    def _render_progress(self):
        percent, bar = self.percent(), find("progress")
        write("progress-percent", percent)
        if not percent:
            bar.removeAttribute("value")
            return
        bar.value = 100 * self.progress.current / self.progress.total
        message = self.progress.message or ""
        write("progress-message", message)
        milestone = max([step for step in ANNOUNCED if step <= bar.value], default=0)
        if milestone > self._announced:
            self._announced = milestone
            write("announcement", f"{milestone} percent. {message}")

    def _render_passes(self):
        begun = [index for index, key in enumerate(self._order) if self._passes[key].steps]
        latest = begun[-1] if begun else -1
        for index, key in enumerate(self._order):
            state = "done" if index <= latest else "waiting"
            if index == max(latest, 0) and self.status != "completed":
                state = "current" if self.status not in TERMINAL else "stopped"
            self._passes[key].render(state)
        write("progress-pass", self._passes[self._order[max(latest, 0)]].title)
        took = sum([one.took for one in self._passes.values()])
        steps = sum([one.steps for one in self._passes.values()])
        write("run-facts", f"Begun {self._started}. {count(steps, 'step')} committed, {duration(took)} of work.")
        show("steps-legend", self.attempt > 1)

    def _render_steps(self):
        rows = []
        for name, status, attempt, took in reversed(self._steps):
            cells = [make("td", None, text) for text in (name, STATUSES.get(status, status), str(attempt))]
            took = make("td", {"class": "number"}, "" if took is None else duration(took))
            rows.append(make("tr", None, *cells, took))
        find("steps").replaceChildren(*rows)

    def _render_log(self):
        log = find("log")
        at_end = log.scrollHeight - log.scrollTop - log.clientHeight < 24
        for milliseconds, level, message in self._log:
            when = make("span", {"class": "log-time"}, clock_time(milliseconds))
            kind = f"{level}: " if level in ("warning", "error") else ""
            log.append(make("p", {"class": f"log-line log-{level}"}, when, make("span", None, kind + message)))
        self._log = []
        for _ in range(log.childElementCount - LOG_LINES):
            log.firstElementChild.remove()
        if at_end:
            log.scrollTop = log.scrollHeight


class _Pass:
    """Some steps that belong together: one line, with a mark for every step that was committed."""

    def __init__(self, title):
        self.title = title
        self.steps = 0
        self.took = 0
        self._new_marks = []
        self._state = make("span", {"class": "visually-hidden"})
        self._figures = make("span", {"class": "pass-figures"})
        self._marks = make("span", {"class": "pass-marks", "aria-hidden": "true"})
        label = make("span", {"class": "pass-title"}, title, self._state)
        head = make("span", {"class": "pass-head"}, label, self._figures)
        self.element = make("li", {"class": "pass", "data-state": "waiting"}, head, self._marks)

    def add(self, status, was_interrupted, took):
        """Count a step that has ended, perhaps the first since the run was interrupted."""
        if was_interrupted:
            self._new_marks.append("mark-break")
        self._new_marks.append(f"mark-{status}")
        self._new_marks = self._new_marks[-MARKS:]
        self.steps += 1
        self.took += took

    def render(self, state):
        """Show what was counted."""
        if self.element.getAttribute("data-state") != state:
            self.element.setAttribute("data-state", state)
            self._state.textContent = PASS_STATES[state]
        if not self._new_marks:
            return
        self._marks.append(*[make("i", {"class": f"mark {mark}"}) for mark in self._new_marks])
        self._new_marks = []
        for _ in range(self._marks.childElementCount - MARKS):
            self._marks.firstElementChild.remove()
        self._figures.textContent = f"{count(self.steps, 'step')}, {duration(self.took)}"


def facts_of(run):
    """What the list of imports says about a run."""
    output = run.output if run.status == "completed" else None
    facts = [moment(run.created_at)]
    if output:
        facts += [count(output["rows"], "row"), size(output["size"])]
    return ", ".join(facts)
