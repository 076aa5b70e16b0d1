"""The site in a real browser: every page at two widths, light and dark. By hand:

    python tests/browser/site.py SITE OUT     (needs chromium, chromedriver, `pip install selenium`)

Fails on a console message, a page wider than its window, a broken link or picture, or a request to
anywhere else. Takes screenshots of the index and of every study, in both widths and schemes.
"""

import base64
import functools
import http.server
import json
import shutil
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urldefrag

from selenium import webdriver
from selenium.webdriver.common.by import By

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
TALLEST = 5200  # pixels of a screenshot


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(
        options=options,
        service=webdriver.ChromeService(executable_path=shutil.which("chromedriver")),
    )


def look(page: webdriver.Chrome, address: str, width: int, shot: Path | None) -> list[str]:
    """Open one page at one width; what is wrong with it."""
    sizes = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    page.get(address)
    page.execute_script("for (const one of document.images) one.loading = 'eager'")
    wide = page.execute_script("return document.documentElement.scrollWidth")
    wrong = [f"{wide} pixels wide in a window of {width}"] if wide > width else []
    wrong += [f"console: {line['message'][:200]}" for line in page.get_log("browser")]
    if shot:
        height = page.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST), "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        taken = page.execute_cdp_cmd("Page.captureScreenshot", options)
        shot.write_bytes(base64.b64decode(taken["data"]))
    return wrong


def links(page: webdriver.Chrome) -> set[str]:
    found = page.find_elements(By.CSS_SELECTOR, "a[href], img[src]")
    targets = {one.get_attribute("href") or one.get_attribute("src") or "" for one in found}
    return {urldefrag(target).url for target in targets}


def main(site: Path, out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    page, wrong, targets = browser(), [], set()
    names = sorted(path.name for path in site.glob("*.html"))
    for scheme in SCHEMES:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for width in WIDTHS:
            for name in names:
                # A notebook's page is long; the index and the studies stand for the looks.
                shown = "_" not in name and not name.startswith("notebook-")
                shot = out / f"{Path(name).stem}-{width}-{scheme}.png" if shown else None
                if shot or scheme == SCHEMES[0]:
                    problems = look(page, base + name, width, shot)
                    wrong += [f"{name}, {width}, {scheme}: {problem}" for problem in problems]
                    targets |= links(page)
    for target in sorted(one for one in targets if one.startswith(base)):
        try:
            urllib.request.urlopen(target).read()
        except urllib.error.HTTPError as error:
            wrong.append(f"{target.removeprefix(base)}: {error.code}")
    asked = set()
    for line in page.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    wrong += [f"asked for {url}" for url in asked if not url.startswith((base, "data:"))]
    page.quit()
    print("\n".join(wrong))
    print(f"{len(names)} pages, {len(targets)} links, {len(asked)} requests, {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
