"""Makes ``docs/images/report.png`` and ``report_time.png``: of a run that was killed on its way.

    python tests/report/screenshot.py [FOLDER]

trains the byte-level language model for some minutes in FOLDER, by default a new one, kills it on
the way, starts it again, and takes a picture of its report in a headless Chromium.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import open_page
from PIL import Image

from xtrainer.report import write_report
from xtrainer.trainer import read_journal

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
KILLED_AFTER = 150
SIZE = {"width": 1180, "height": 1330}
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT / "experiments")!r})
import byte_lm, xtrainer as xt
xt.initialize()
config = byte_lm.get_config()
with config.unlocked():
    callbacks = [
        xt.ModelCheckpointConfig(monitor="loss", mode="min", max_to_keep=2, every_n_steps=40),
        xt.LearningRateMonitorConfig(),
        xt.ThroughputConfig(tokens_per_example=64),
    ]
    config.trainer.callbacks = [callback.to_dict() for callback in callbacks]
    config.num_train_steps = 400
    config.trainer.check_val_every_n_steps = 50
    config.trainer.log_intermediates = False
    config.trainer.enable_progress_bar = False
    config.trainer.logger.log_every_n_steps = 5
    config.trainer.logger.write_interval_s = 0.0
    config.trainer.logger.log_path = sys.argv[1]
byte_lm.run(config)
"""


def train(folder: Path) -> None:
    """Trains, with a kill on the way."""
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    with subprocess.Popen(command, cwd=ROOT) as first:
        while first.poll() is None and reached(folder) < KILLED_AFTER:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    time.sleep(5)  # a scheduler takes its time as well
    subprocess.run(command, cwd=ROOT, check=True)


def reached(folder: Path) -> int:
    """Returns the newest step that the journal knows."""
    try:
        return max(line.step for line in read_journal(folder))
    except (OSError, ValueError):
        return 0


def main() -> None:
    """Trains, writes the report and takes the picture."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).absolute() / "byte_lm"
    if not folder.exists():
        train(folder)
    report = write_report([folder])
    IMAGES.mkdir(parents=True, exist_ok=True)
    with open_page(report, viewport=SIZE) as page:
        page.screenshot(path=IMAGES / "report.png")
        page.evaluate("document.querySelector('nav').style.position = 'static'")
        box, below = (page.locator(name).bounding_box() for name in ("#time", "#timeline"))
        height = box["height"] + below["height"]
        clip = {"x": 0, "y": box["y"], "width": SIZE["width"], "height": height}
        page.screenshot(path=IMAGES / "report_time.png", clip=clip, full_page=True)
    for image in (IMAGES / "report.png", IMAGES / "report_time.png"):
        with Image.open(image) as picture:  # few colours make a small file
            picture.convert("RGB").quantize(128).save(image, optimize=True)
        print(f"{image}: {image.stat().st_size:,} bytes")
    print(f"{report}: {report.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
