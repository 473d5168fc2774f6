// Error messages on the page.

import { hasToken, keepToken } from "./api.js";
import { $, make } from "./make.js";

/** Run an action and show its error; an action that lacked a token is repeated after one is entered. */
export const attempt = async (action) => {
  $("#error").hidden = true;
  $("#access").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return; // replaced by another choice
    $("#status").textContent = "";
    if (error.status === 401) askForToken(action);
    else showError(error.message);
  }
};

const showError = (message) => {
  const close = make("button", { type: "button", "aria-label": "Close the message" }, "✕");
  close.addEventListener("click", () => { $("#error").hidden = true; });
  $("#error").replaceChildren(make("p", {}, message), close);
  $("#error").hidden = false;
  $("#error").scrollIntoView({ block: "nearest" });
};

const askForToken = (action) => {
  if (hasToken()) showError("The service does not accept this token.");
  $("#access").onsubmit = (event) => {
    event.preventDefault();
    keepToken($("#token").value.trim());
    $("#token").value = "";
    attempt(action);
  };
  $("#access").hidden = false;
  $("#token").focus();
};
