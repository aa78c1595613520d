// Requests to the server. Only a page that a server sends has this file; a page from the disk makes no requests.
"use strict";
const api = {
  async call(what, body) {
    const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let response;
    try {
      response = await fetch(`../api/${what}`, options);
    } catch {
      throw new Error("The server does not answer: `starfc review` has ended.");
    }
    const content = await response.json();
    if (!response.ok) throw new Error(content.error);
    return content;
  },
};
