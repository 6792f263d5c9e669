"""A browser for the tests that need one: Debian's chromium, driven by Playwright, which downloads none of its own."""
import shutil

import pytest


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path: pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])       # a container's root has no sandbox
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    "A function that opens a page of a given width; whatever its console or its network complains about lands in `page.complaints`."
    pages = []
    def open_page(width=1280, **kwargs):
        page = browser.new_page(viewport={"width": width, "height": 900}, **kwargs)
        page.complaints = []
        page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
        page.on("pageerror", lambda e: page.complaints.append(str(e)))
        page.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or page.complaints.append(f"{r.url}: {r.failure}"))      # aborted: the page was left
        page.on("response", lambda r: r.status >= 400 and page.complaints.append(f"{r.url}: {r.status}"))
        pages.append(page)
        return page
    yield open_page
    for page in pages: page.close()
