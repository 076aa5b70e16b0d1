"""The panel in a real browser: JupyterLab's server, headless Chromium, controls used. By hand:

    python tests/browser/panel.py OUT             (needs chromium, chromedriver, selenium)
    python tests/browser/panel.py OUT quickstart

Runs all cells of a notebook from the menu: by default one that shows the panel of the embedded
model's committed edit, else a copy of `notebooks/quickstart.ipynb`. Moves the strength and sees the
text change (OUT/before.png, OUT/after.png), counts the rate, goes back to the chosen edit, gives a
block a strength of its own, waits for Run, and saves a patch (OUT/panel.png).
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import nbformat
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
WAIT = 1200  # seconds, for a machine that does other things
SHOWN = ".widget-html .model-surgery-panel"
FAILED = ".jp-OutputArea-output.jp-mod-error"
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


SOURCE = """
from surgery_lib.experiments import panel
from surgery_lib.experiments.context import Context
from surgery_lib.selection.table import Point

study = Context.start("patient")
model, tokenizer = study.load_model()
about = study.surgery().about
probes = {about["probe"]: study.probes()[about["probe"]]}
prompts = [one.text for one in study.data().prompts["test"]
           if one.group in study.spec.trigger_groups][:12]
point = Point(*(about[part] for part in ("probe", "rule", "fraction", "strength")))
panel.panel(model, tokenizer, probes, [study.guide], prompts, table=study.table(probes),
            point=point, budget=study.profile.budget.context_kl)
"""


def main(out: Path, name: str = "") -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / f"{name or 'panel'}.ipynb"
        if name:  # a copy: Lab saves what it runs, and sources carry no output
            shutil.copy(ROOT / "notebooks" / notebook.name, notebook)
        else:
            cells = [nbformat.v4.new_code_cell(SOURCE)]
            # Named, or Lab asks for a kernel in a dialogue.
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), notebook)
        port = free_port()
        lab = server(Path(folder), port)
        page = browser()
        try:
            check(page, f"http://127.0.0.1:{port}/lab/tree/{notebook.name}", Path(folder), out)
        finally:
            page.save_screenshot(str(out / "last.png"))
            page.quit()
            lab.terminate()
            lab.wait(300)


def opened(page: webdriver.Chrome, address: str) -> None:
    """Open the notebook once the server answers."""
    for _ in range(WAIT):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except OSError:
            time.sleep(1)
    page.get(address)


def check(page: webdriver.Chrome, address: str, folder: Path, out: Path) -> None:
    """Open, run all, use the controls, see what they change."""
    page.set_page_load_timeout(WAIT)
    opened(page, address)
    wait = WebDriverWait(page, WAIT)
    wait.until(lambda p: p.find_element(By.CSS_SELECTOR, ".jp-Notebook .cm-content"))
    time.sleep(8)  # the kernel
    start = time.perf_counter()
    for item in (MENU, RUN_ALL):
        wait.until(lambda p, item=item: p.find_element(By.XPATH, item)).click()
    there = wait.until(lambda p: p.find_elements(By.CSS_SELECTOR, f"{SHOWN}, {FAILED}"))
    if failed := [
        one.text for one in there if "jp-mod-error" in (one.get_attribute("class") or "")
    ]:
        raise SystemExit(failed[0])
    print(f"the panel is there {time.perf_counter() - start:.0f} s after Run All Cells")

    def text() -> str:
        """What the panel shows; a redraw may take the element away meanwhile."""
        try:
            return page.find_element(By.CSS_SELECTOR, SHOWN).text
        except StaleElementReferenceException:
            return text()

    def changed(what: str, act: Callable[[], None], wanted: str = "") -> None:
        before, start = text(), time.perf_counter()
        act()
        wait.until(lambda _: text() != before and wanted in text())
        print(f"{what}: the panel changed after {time.perf_counter() - start:.1f} s")

    def shot(name: str) -> None:
        page.execute_script(
            "document.querySelectorAll('.Toastify').forEach(e => e.remove());"
            "arguments[0].scrollIntoView({block: 'center'})",
            page.find_element(By.CSS_SELECTOR, ".widget-vbox"),
        )
        time.sleep(2)
        page.find_element(By.CSS_SELECTOR, ".widget-vbox").screenshot(str(out / name))

    def press(label: str) -> None:
        page.find_element(By.XPATH, f"//button[normalize-space()='{label}']").click()

    def tick(label: str) -> None:
        path = f"//div[contains(@class, 'widget-checkbox')][contains(., '{label}')]//input"
        page.find_element(By.XPATH, path).click()

    def said(words: str) -> None:
        path = f"//div[contains(@class, 'widget-html')][contains(., '{words}')]"
        wait.until(lambda p: p.find_elements(By.XPATH, path))

    def slide(pixels: int) -> None:
        handle = page.find_element(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
        ActionChains(page).drag_and_drop_by_offset(handle, pixels, 0).perform()

    def choose(label: str, value: str) -> None:
        path = f"//select[option[contains(., '{label}')]]"
        Select(wait.until(lambda p: p.find_element(By.XPATH, path))).select_by_visible_text(value)

    assert "the chosen edit: " in text() and "the budget of" in text()
    shot("before.png")
    changed("strength", lambda: slide(70))
    assert "the chosen edit: " not in text()
    shot("after.png")
    tick("rate over")
    said("shows it: ")
    changed("Reset", lambda: press("Reset"), "the chosen edit: ")
    time.sleep(4)  # the rate of the edit that it went back to
    blocks = [o.text for o in page.find_elements(By.XPATH, "//option[contains(., 'alone')]")]
    choose("alone", blocks[-1])
    changed("a block alone", lambda: slide(-60), "block ")
    tick("at once")
    before = text()
    slide(-20)
    time.sleep(3)
    assert text() == before, "it ran though it was told to wait"
    changed("Run", lambda: press("Run"))
    press("Save")
    said("saved as a patch")
    assert (folder / "my-surgery" / "surgery.safetensors").is_file()
    shot("panel.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
