"""What several test files share: a browser (Debian's chromium, driven by Playwright, which
downloads none of its own), a small model, a fake judge."""

import os
import shutil

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it: no test asks a hub


@pytest.fixture(scope="session")
def browser():
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not path:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )  # a container's root has no sandbox
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function that opens a page of a given width; whatever its console or its network complains
    about lands in `page.complaints`."""
    pages = []

    def open_page(width=1280, **kwargs):
        page = browser.new_page(viewport={"width": width, "height": 900}, **kwargs)
        page.complaints = []
        page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
        page.on("pageerror", lambda e: page.complaints.append(str(e)))
        page.on(
            "requestfailed",
            lambda r: (
                r.failure == "net::ERR_ABORTED" or page.complaints.append(f"{r.url}: {r.failure}")
            ),
        )  # aborted: the page was left
        page.on(
            "response", lambda r: r.status >= 400 and page.complaints.append(f"{r.url}: {r.status}")
        )
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    "A folder with a tiny model and a tokenizer that has a chat template."
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from slpo.tokens import train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(
        ["user: What is 1 plus 1? assistant: It is two, or three."], vocab_size=300
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            eos_token_id=0,
            bos_token_id=0,
        )
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def serve():
    """Starts servers that answer a judge's questions (`test_judge.FakeServer`); they stop with the
    test."""
    from test_judge import FakeServer

    servers = []

    def start(says):
        servers.append(FakeServer(says))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
