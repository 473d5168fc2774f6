// What may go wrong, told in words on the page.

import { hasToken, keepToken } from "./api.js";
import { $, make } from "./make.js";

/** Do what may fail, and tell how in words; what lacked a token is done again once there is one. */
export const attempt = async (action) => {
  $("#error").hidden = true;
  $("#access").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return; // another choice took its place
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
  if (hasToken()) showError("The service does not know this token.");
  $("#access").onsubmit = (event) => {
    event.preventDefault();
    keepToken($("#token").value.trim());
    $("#token").value = "";
    attempt(action);
  };
  $("#access").hidden = false;
  $("#token").focus();
};
