"""The explorer's page in a real browser: it is used as a person would, and asks for nothing outside of this machine."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import graph_sets
import pytest
import synthetic
import synthetic_graph
import torch
from conftest import REQUIRE
from explorer_server import running, write_dictionary
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.explorer import workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BAD = "<img src=x onerror=\"document.title='stolen'\"><script>document.title='stolen'</script>"
SIZES = [(1000, 700), (1600, 950)]
# What reaches beyond the window, and controls that have no name for a screen reader.
TOO_WIDE = """[...document.querySelectorAll("main *")]
  .filter(one => one.getClientRects().length && !one.closest(".scroll, svg, .hits"))
  .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 90))"""
UNNAMED = """[...document.querySelectorAll("main button, main input, main select, main textarea")]
  .filter(one => one.getClientRects().length && !one.closest("label"))
  .filter(one => !(one.ariaLabel || one.textContent.trim() || one.labels?.length))
  .map(one => one.outerHTML.slice(0, 90))"""
# The graph is zoomed a little and dragged, a step a frame; milliseconds from frame to frame.
DRAGGED = """async () => {
  const canvas = document.querySelector("canvas.nodes"), found = [];
  const at = (x, y, buttons) => ({ clientX: x, clientY: y, buttons, pointerId: 1, bubbles: true });
  canvas.setPointerCapture = () => {};
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, clientX: 300, clientY: 300, cancelable: true }));
  canvas.dispatchEvent(new PointerEvent("pointerdown", at(300, 300, 1)));
  let last = await new Promise(requestAnimationFrame);
  for (let step = 0; step < 30; step++) {
    canvas.dispatchEvent(new PointerEvent("pointermove", at(300 + 6 * step, 300 + 3 * step, 1)));
    const now = await new Promise(requestAnimationFrame);
    found.push(now - last);
    last = now;
  }
  canvas.dispatchEvent(new PointerEvent("pointerup", at(480, 390, 0)));
  return found;
}"""


def missing(what):
    (pytest.fail if REQUIRE else pytest.skip)(what)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        missing("there is no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    write_tiny_chat(folder / "model", n_layers=3)
    write_dictionary(folder / "sae")
    data = synthetic_graph.graph(n_features=80)
    features = [node for node in data["nodes"] if node["feature_type"] == "cross layer transcoder"]
    features[0]["clerp"] = BAD
    ids = [node["node_id"] for node in features]
    features[0]["qk_tracing_results"] = {"pair_wise_contributors": [[ids[1], ids[2], 0.5], [ids[2], BAD, -0.1]]}
    data["metadata"]["prompt"] = BAD
    data["metadata"]["prompt_tokens"][1] = BAD
    (folder / "graph.json").write_text(json.dumps(data))
    large = synthetic_graph.graph(n_features=10_000, n_tokens=16, n_layers=26, links_each=16)
    (folder / "large.json").write_text(json.dumps(large))
    write_circuit(folder)
    random_vectors()["cat"].export_gguf(folder / "cat.gguf")
    (folder / "run").mkdir()
    (folder / "run" / "with_info.json").write_text(json.dumps(synthetic.detection()))
    with running(workspace.find(str(folder))) as one:
        yield one


def write_circuit(folder):
    """A graph of the model, and the transcoders that it is of."""
    model = introspect.load_model(folder / "model")
    sets = {layer: one.to(torch.float32) for layer, one in graph_sets.per_layer(model).items()}
    for layer, one in sets.items():
        introspect.sae.files.save(one, folder / f"transcoder {layer}")
    graph = introspect.circuits.attribute(model, "a cat ate bread", sets, progress=False)
    graph.to_json(folder / "own.json")


@pytest.fixture
def page(browser, explorer):
    """A page in a profile of its own. What went wrong in it, and where it went, is looked at afterwards."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert page.title() != "stolen"
    context.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {f"127.0.0.1:{explorer.port}"}
    assert problems == []


def visit(page, explorer, state=""):
    page.goto("about:blank")
    page.goto(f"{explorer.url}#{state}")
    page.wait_for_load_state("networkidle")


def test_a_prompt_is_typed_read_steered_and_restored(page, explorer):
    visit(page, explorer)
    assert "token" not in page.url  # it is out of the address bar
    page.fill("#prompt", "a cat ate bread")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("table.map td")
    tokens = page.locator(".prompt .tokens button")
    tokens.nth(3).click()
    page.locator("table.map tbody tr").nth(1).locator("td").nth(3).click()
    assert tokens.nth(3).get_attribute("aria-pressed") == "true"
    page.wait_for_selector("#logits .bars td")
    page.fill("#steer-word", " cat")
    page.fill("#steer-strength", "0.5")
    page.press("#steer-strength", "Enter")
    page.check("#steer-on")
    page.wait_for_selector("#logits .key.orange")
    page.fill("#new-tokens", "5")
    page.click("#write")
    page.wait_for_selector("#write:enabled")
    assert page.locator("#steer .texts pre").count() == 2
    page.click("#attention summary")
    page.locator("#attention .head").nth(2).click()
    page.wait_for_selector(".pattern canvas")
    page.click("#point summary")
    page.wait_for_selector("#point .histogram span")
    before = page.url
    page.reload()
    page.wait_for_selector("#logits .key.orange")
    assert page.url == before
    assert page.input_value("#prompt") == "a cat ate bread"
    assert page.is_checked("#steer-on") and page.input_value("#steer-word") == " cat"
    assert page.locator(".prompt .tokens button").nth(3).get_attribute("aria-pressed") == "true"
    assert page.locator(".pattern").count() == 1


def test_a_graph_is_pruned_pinned_grouped_changed_and_saved(page, explorer):
    visit(page, explorer, "view=graphs&graph=graph")
    page.wait_for_selector("#counts:not(:empty)")
    many = page.inner_text("#counts")
    page.locator("#node-share").fill("0.4")
    assert page.inner_text("#counts") != many
    page.locator("#node-share").fill("1")
    page.locator("#link-share").fill("1")
    page.fill("[type=search]", "onerror")
    page.locator(".hits button:not(:has-text('token '))").first.click()  # the feature whose name is markup
    assert page.inner_text("#node h2") == BAD
    assert page.locator("#qk .bars tr").count() == 2
    page.click("#pin")
    page.locator("#connections .pickable").first.click()
    page.click("#pin")
    assert page.locator(".sub .block").count() == 2
    page.locator(".sub .block").nth(0).click()
    page.locator(".sub .block").nth(1).click(modifiers=["Shift"])
    page.fill(".sub input", "my group")
    page.click("text=Group")
    assert page.locator(".sub .block.group").count() == 1
    page.keyboard.press("Escape")
    page.locator("canvas.nodes").focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "p"):
        page.keyboard.press(key)
    assert page.locator(".sub .block").count() == 2
    page.fill("[type=search]", "feature")
    page.locator(".hits button").nth(1).click()
    page.click("text=Take out")
    page.click("#predict")
    page.wait_for_selector("#change h3")
    page.click("text=Paths from here")
    page.locator("#connections .pickable").last.click()
    with page.expect_download() as saved:
        page.click("#export")
    data = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert data["qParams"]["supernodes"][0][0] == "my group"
    assert len(data["qParams"]["supernodes"][0]) == 3
    assert len(data["qParams"]["pinnedIds"]) == 1
    page.reload()
    page.wait_for_selector(".sub .block.group")
    assert page.locator(".sub .block").count() == 2
    assert page.input_value("#node-share") == "1"
    assert page.locator("#change .row.small").count() == 1


def test_heads_are_asked_why_and_changes_measured(page, explorer):
    visit(page, explorer, "view=graphs&graph=own&nodes=1&links=1")
    page.wait_for_selector("#counts:not(:empty)")
    page.fill("#qk-live [aria-label=Layer]", "2")
    page.fill("#qk-live [aria-label=Head]", "1")
    page.select_option("#qk-live [aria-label='From the token']", "5")
    page.select_option("#qk-live [aria-label='To the token']", "3")
    page.click("#why")
    page.wait_for_selector("#qk-live .bars tr")
    said = page.inner_text("#qk-live p")
    page.reload()
    page.wait_for_selector("#qk-live .bars tr")
    assert page.inner_text("#qk-live p") == said
    page.fill("[type=search]", "feature")
    page.locator(".hits button").first.click()
    page.click("text=Paths from here")
    page.fill("[type=search]", "says")
    page.locator(".hits button").first.click()
    page.click("#carriers")
    page.wait_for_selector("text=Heads that carry it")
    page.locator("#qk-live [aria-label=Heads] .pickable").first.click()
    page.wait_for_function(f"document.querySelector('#qk-live p').innerText !== {json.dumps(said)}")
    page.fill("[type=search]", "feature")
    page.locator(".hits button").first.click()
    page.click("text=Take out")
    page.click("#measure")
    page.wait_for_selector("text=measured in the model")


def test_ten_thousand_nodes_stay_responsive(page, explorer, capsys):
    """Every node and the strongest links are drawn again and again: while the graph is dragged, zoomed and pruned."""
    visit(page, explorer, "view=graphs&graph=large&nodes=1&links=1")
    page.wait_for_selector("#counts:not(:empty)", timeout=60_000)
    assert "10,4" in page.inner_text("#counts")
    page.evaluate("introspectFrames.length = 0")
    intervals = page.evaluate(DRAGGED)
    for share in ("0.9", "0.95", "1"):
        page.locator("#node-share").fill(share)
        page.wait_for_timeout(50)
    frames, intervals = sorted(page.evaluate("[...introspectFrames]")), sorted(intervals)
    median, between = frames[len(frames) // 2], intervals[len(intervals) // 2]
    with capsys.disabled():
        print(
            f"\n10,435 nodes, 117,000 links: {len(frames)} drawings, median {median:.1f}, slowest {frames[-1]:.1f} ms"
        )
        print(f"from frame to frame while dragged: median {between:.1f}, slowest {intervals[-1]:.1f} ms")
    assert len(frames) >= 20


def test_a_feature_is_found_tested_and_labelled(page, explorer):
    visit(page, explorer, "view=dictionaries")
    page.fill("#search", "a cat ate bread")
    page.press("#search", "Enter")
    page.wait_for_selector(".left .tokens button")
    page.locator(".features button").first.click()
    page.wait_for_selector(".page h3")
    page.fill("#test textarea", "no bread for a cat")
    page.wait_for_selector("#test .token")
    label = page.locator("[aria-label=Label]")
    label.fill(BAD)
    label.press("Enter")
    page.wait_for_selector("text=saved in labels.json")
    page.click("text=Read the texts")
    page.wait_for_selector(".contexts li")
    before = page.url
    page.reload()
    page.wait_for_selector(".contexts li")
    assert page.url == before
    assert page.input_value("[aria-label=Label]") == BAD


def test_a_reading_is_drilled_into(page, explorer):
    visit(page, explorer, "view=experiments")
    page.wait_for_selector("[data-cell]")
    page.locator("[data-cell]").first.click()
    page.wait_for_selector(".page .facts")
    shown = page.inner_text(".page h1")
    page.reload()
    page.wait_for_selector(".page .facts")
    assert page.inner_text(".page h1") == shown


def test_keys_lead_through_the_views(page, explorer):
    visit(page, explorer)
    for number, name in enumerate(("Model", "Dictionaries", "Graphs", "Experiments"), start=1):
        page.keyboard.press("Escape")
        page.keyboard.press(str(number))
        page.wait_for_selector(f"nav button[aria-current]:text-is('{name}')")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.go_back()
    page.wait_for_selector("nav button[aria-current]:text-is('Graphs')")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", ["model", "dictionaries&feature=3", "graphs&graph=graph", "experiments&cell=0"])
def test_nothing_is_wider_than_the_window(page, explorer, size, view):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    visit(page, explorer, f"view={view}")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(UNNAMED) == []
