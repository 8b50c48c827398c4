"""What somebody sees who chats on chainlit's page in chromium, as JSON: chainlit_page.py URL PICTURE FIELDS. The second
message has the picture; before the third, FIELDS are put into the page's settings."""

import json
import sys

from browser import open_page

QUESTION = "What is two plus three?"


def ask(page, text):
    """The answer that is shown when nothing more comes."""
    answers = page.locator("[data-step-type=assistant_message]")
    before = answers.count()
    page.click("#chat-input")
    page.keyboard.type(text)
    page.click("#chat-submit")
    answers.nth(before).wait_for()
    page.locator("#stop-button").wait_for(state="detached")
    return answers.nth(before).inner_text()


def main(url, picture, fields):
    seen = {"faults": []}
    with open_page(url, seen["faults"]) as page:
        page.locator("#chat-input").wait_for()
        seen["plain"] = ask(page, QUESTION)
        page.set_input_files("#upload-button-input", picture)
        page.locator("#message-composer img").wait_for()
        seen["of_picture"] = ask(page, "What do you see?")
        seen["pictures"] = page.locator("[data-step-type=user_message] img").count()
        page.click("#chat-settings-open-modal")
        seen["model"] = page.locator("[role=dialog] #model").inner_text()
        page.fill("[role=dialog] #fields", fields)
        page.click("[role=dialog] #confirm")
        page.locator("[role=dialog]").wait_for(state="detached")
        seen["thoughtful"] = ask(page, QUESTION)
        thoughts = page.locator("[data-step-type=llm]")
        seen["folded"] = thoughts.inner_text()
        thoughts.locator("button").click()
        thoughts.locator(".message-content").wait_for()
        seen["unfolded"] = thoughts.inner_text()
    print(json.dumps(seen))


main(*sys.argv[1:])
