"""Quickstart in a real browser: JupyterLab's server, headless Chromium, a slider moved. By hand:

    python tests/browser/panel.py OUT     (needs chromium, chromedriver, `pip install selenium`)

Opens a copy of notebooks/quickstart.ipynb without a network, so on the patient; runs all cells from
the menu, takes OUT/before.png, moves the strength, sees the text change, and takes OUT/after.png.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
MENU = "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']"
RUN_ALL = "//li[@data-command='runmenu:run-all']"


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--port={port}",
        "--ip=127.0.0.1",
    ]
    options = ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--allow-root"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL)


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1400,1000", "--disable-gpu"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(NOTEBOOK, name)  # Lab saves what it runs, and sources carry no output
        port = free_port()
        lab = server(Path(name), port)
        time.sleep(8)
        page = browser()
        try:
            check(page, f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}", out)
        finally:
            page.save_screenshot(str(out / "last.png"))
            page.quit()
            lab.terminate()
            lab.wait(30)


def check(page: webdriver.Chrome, address: str, out: Path) -> None:
    """Open, run all, move the slider, see the text change."""
    page.get(address)
    wait = WebDriverWait(page, 300)
    wait.until(lambda p: p.find_element(By.CSS_SELECTOR, ".jp-Notebook .cm-content"))
    time.sleep(8)  # the kernel
    start = time.perf_counter()
    for item in (MENU, RUN_ALL):
        wait.until(lambda p, item=item: p.find_element(By.XPATH, item)).click()
    shown = wait.until(
        lambda p: p.find_element(By.CSS_SELECTOR, ".widget-html .model-surgery-panel")
    )
    print(f"the panel is there {time.perf_counter() - start:.0f} s after Run All Cells")
    before = shown.text
    page.execute_script("arguments[0].scrollIntoView({block: 'end'})", shown)
    time.sleep(2)
    page.save_screenshot(str(out / "before.png"))
    slider = page.find_element(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
    ActionChains(page).drag_and_drop_by_offset(slider, 70, 0).perform()

    def moved(p: webdriver.Chrome) -> bool:
        return p.find_element(By.CSS_SELECTOR, ".widget-html .model-surgery-panel").text != before

    start = time.perf_counter()
    wait.until(moved)
    print(f"the text changed {time.perf_counter() - start:.1f} s after the slider was let go")
    time.sleep(1)
    page.save_screenshot(str(out / "after.png"))
    page.execute_script("document.querySelectorAll('.Toastify').forEach(e => e.remove())")
    time.sleep(2)
    panel = page.find_element(By.CSS_SELECTOR, ".widget-vbox")
    panel.screenshot(str(out / "panel.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
