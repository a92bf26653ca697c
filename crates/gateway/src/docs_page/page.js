// Reads /api/openapi.json and shows it. Whatever comes from the description is put in as text, never as markup.
"use strict";

const METHODS = ["get", "post", "put", "delete"];
let api;

// Makes an element: `make("a", {href: "/x"}, "text", child)`.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

// Text in which `words` stand as code.
function prose(text) {
  return (text ?? "").split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

function resolve(schema) {
  const to = schema?.$ref;
  if (!to) return schema ?? {};
  const found = to.slice(2).split("/").reduce((place, step) => place?.[step], api);
  const { $ref, ...beside } = schema;
  return { ...found, ...beside };
}

// The one schema of an optional field that is not `null`.
function present(schema) {
  const resolved = resolve(schema);
  const options = resolved.anyOf?.filter((option) => option.type !== "null");
  return options?.length === 1 ? { ...resolve(options[0]), description: resolved.description ?? resolve(options[0]).description } : resolved;
}

function kindOf(schema) {
  const it = present(schema);
  if (it === true || Object.keys(it).every((key) => key === "description")) return "any JSON";
  if (it.const !== undefined) return JSON.stringify(it.const);
  if (it.enum) return it.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (it.anyOf) return it.anyOf.map(kindOf).join(" or ");
  const types = [it.type ?? "object"].flat().filter((type) => type !== "null");
  if (types[0] === "array") return `list of ${kindOf(it.items ?? {})}`;
  const bounds = [
    it.minimum !== undefined ? `from ${it.minimum}` : "",
    it.exclusiveMinimum !== undefined ? `above ${it.exclusiveMinimum}` : "",
    it.maximum !== undefined ? `to ${it.maximum}` : "",
    it.minLength !== undefined || it.maxLength !== undefined ? `${it.minLength ?? 0} to ${it.maxLength ?? "any number of"} characters` : "",
  ].filter(Boolean).join(" ");
  return `${it.format ?? types.join(" or ")}${bounds ? ` (${bounds})` : ""}`;
}

// The fields of an object, and of what its lists hold, as a tree.
function fields(schema, isAnswer, depth = 0) {
  const it = present(schema);
  const inner = [it.type].flat()[0] === "array" ? present(it.items) : it;
  if (!inner.properties || depth > 4) return undefined;
  const list = make("ul", { class: "fields" });
  for (const [name, field] of Object.entries(inner.properties)) {
    // Of an answer, every field is there.
    const must = !isAnswer && inner.required?.includes(name);
    list.append(make("li", {}, make("code", {}, name), " ", make("span", { class: "kind" }, kindOf(field)), " ",
      must ? make("span", { class: "must" }, "required") : undefined,
      present(field).description ? make("span", { class: "about" }, ...prose(present(field).description)) : undefined,
      fields(field, isAnswer, depth + 1)));
  }
  return list;
}

// A body to begin with: what must be there, filled in.
function example(schema, depth = 0) {
  const it = present(schema);
  if (it.default !== undefined && it.default !== null) return it.default;
  if (it.const !== undefined) return it.const;
  if (it.enum) return it.enum[0];
  if (it.anyOf) return example(it.anyOf[0], depth);
  const type = [it.type].flat()[0];
  if (it.properties && depth < 5) {
    return Object.fromEntries((it.required ?? []).map((name) => [name, example(it.properties[name], depth + 1)]));
  }
  if (type === "array") return [example(it.items ?? {}, depth + 1)];
  if (type === "integer" || type === "number") return it.minimum ?? 1;
  if (type === "boolean") return false;
  if (type === "string") return it.format === "date-time" ? new Date().toISOString() : "";
  return {};
}

const idOf = (operation) => operation.operationId;

function routeCard(path, method, operation) {
  const card = make("details", { class: "route", id: idOf(operation) });
  card.append(make("summary", {}, make("span", { class: `method ${method}` }, method.toUpperCase()),
    make("span", { class: "path" }, path), make("span", { class: "summary" }, operation.summary)));
  card.dataset.words = [method, path, operation.summary, operation["x-permission"],
    ...Object.values(operation.responses).flatMap((answer) => answer["x-codes"] ?? [])].join(" ").toLowerCase();
  // Most cards are never opened: each is filled when it first is.
  card.addEventListener("toggle", () => {
    if (card.open && card.children.length === 1) card.append(inside(path, method, operation));
  });
  return card;
}

function inside(path, method, operation) {
  const body = operation.requestBody;
  const kind = body && Object.keys(body.content)[0];
  const shape = body && body.content[kind].schema;
  const needs = operation["x-permission"] ?? (operation.security?.length ? "an access token" : undefined);
  const again = { "by nature": "a repeat does no more", "by key": "takes an Idempotency-Key", never: "a repeat acts again" }[operation["x-idempotency"]];
  const facts = make("ul", { class: "facts" },
    make("li", { class: needs ? "needs" : "" }, needs ? `needs ${needs}` : "open to anyone"), make("li", {}, again),
    operation["x-body-bytes-max"] ? make("li", {}, `body up to ${Math.round(operation["x-body-bytes-max"] / 1024)} KiB`) : undefined,
    make("li", {}, `answers within ${operation["x-timeout-seconds"]} s`));
  const box = make("div", { class: "inside" }, facts);
  if (operation.parameters?.length) {
    const list = make("ul", { class: "fields" });
    for (const parameter of operation.parameters) {
      list.append(make("li", {}, make("code", {}, parameter.name), " ",
        make("span", { class: "kind" }, `${parameter.in}, ${kindOf(parameter.schema)}`), " ",
        parameter.required ? make("span", { class: "must" }, "required") : undefined,
        parameter.description ? make("span", { class: "about" }, ...prose(parameter.description)) : undefined));
    }
    box.append(make("h3", {}, "Parameters"), list);
  }
  if (body) {
    box.append(make("h3", {}, `Body `, make("code", {}, kind), body.required ? "" : " (may be left out)"), fields(shape, false) ?? "");
  }
  box.append(make("h3", {}, "Answers"));
  for (const [status, answer] of Object.entries(operation.responses)) {
    const content = Object.entries(answer.content ?? {}).find(([type]) => !type.includes("problem"));
    const tree = content && fields(content[1].schema, true);
    const line = [make("span", { class: `status ${status < 400 ? "ok" : "no"}` }, status), make("span", {}, ...prose(answer.description))];
    box.append(tree ? make("details", { class: "answer" }, make("summary", {}, ...line), tree) : make("div", { class: "answer flat" }, ...line));
  }
  box.append(make("h3", {}, "Try it"), tryIt(path, method, operation, kind, shape));
  return box;
}

function tryIt(path, method, operation, kind, shape) {
  const form = make("form", { class: "try" });
  const row = make("div", { class: "row" });
  for (const parameter of operation.parameters ?? []) {
    row.append(make("label", {}, parameter.name, make("input", { name: parameter.name, "data-in": parameter.in, required: parameter.required, autocomplete: "off" })));
  }
  if (row.children.length) form.append(row);
  if (kind === "application/json") {
    form.append(make("label", {}, "Body", make("textarea", { name: "body", spellcheck: "false" }, operation.requestBody.required ? JSON.stringify(example(shape), null, 2) : "")));
  } else if (kind) {
    form.append(make("label", {}, "Files", make("input", { type: "file", name: "file", multiple: true })));
  }
  const send = make("button", {}, "Send");
  const stop = make("button", { type: "button", class: "plain", hidden: true }, "Stop");
  const shown = make("pre", { hidden: true });
  form.append(make("div", { class: "buttons" }, send, stop), shown);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const stopper = new AbortController();
    stop.onclick = () => stopper.abort();
    send.disabled = true;
    stop.hidden = shown.hidden = false;
    shown.textContent = "…";
    try {
      await call(form, path, method, kind, shown, stopper.signal);
    } catch (error) {
      shown.textContent += stopper.signal.aborted ? "\n(stopped)" : `\n${error.message}`;
    }
    send.disabled = false;
    stop.hidden = true;
  });
  return form;
}

async function call(form, path, method, kind, shown, signal) {
  const headers = {};
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll("[data-in]")) {
    if (!input.value) continue;
    if (input.dataset.in === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.dataset.in === "header") headers[input.name] = input.value;
    else for (const value of input.value.split(",")) query.append(input.name, value.trim());
  }
  const token = document.querySelector("#sign-in").elements.token.value.trim();
  if (token) headers.authorization = `Bearer ${token}`;
  let body;
  if (kind === "application/json" && form.elements.body.value.trim()) {
    headers["content-type"] = kind;
    body = form.elements.body.value;
  } else if (kind === "multipart/form-data") {
    body = new FormData();
    for (const file of form.elements.file.files) body.append("file", file);
  }
  const answer = await fetch(`${path}${query.size ? `?${query}` : ""}`, { method: method.toUpperCase(), headers, body, signal });
  const type = answer.headers.get("content-type") ?? "";
  shown.textContent = `${answer.status} ${answer.statusText}\n${type}\n\n`;
  if (type.includes("json")) {
    const text = await answer.text();
    try { shown.textContent += JSON.stringify(JSON.parse(text), null, 2); } catch { shown.textContent += text; }
  } else if (type.startsWith("text/")) {
    // A live stream is shown as it comes.
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      shown.textContent += part.value;
      shown.scrollTop = shown.scrollHeight;
    }
  } else if (answer.body) {
    shown.textContent += `${(await answer.blob()).size} bytes`;
  }
}

function show() {
  document.querySelector("#version").textContent = api.info.version;
  const content = document.querySelector("#content");
  const contents = document.querySelector("#contents");
  content.replaceChildren(make("p", {}, ...prose(api.info.description)));
  const codes = new Map();
  for (const [status, of] of Object.entries(api["x-codes"])) for (const code of of) codes.set(code, status);
  for (const tag of api.tags) {
    const section = make("section", {}, make("h2", {}, tag.name), make("p", {}, ...prose(tag.description)));
    contents.append(make("h2", {}, tag.name));
    for (const [path, operations] of Object.entries(api.paths)) {
      for (const method of METHODS) {
        const operation = operations[method];
        if (!operation?.tags.includes(tag.name)) continue;
        section.append(routeCard(path, method, operation));
        contents.append(make("a", { href: `#${idOf(operation)}`, title: operation.summary },
          make("span", { class: `method ${method}` }, method.toUpperCase()), make("span", {}, path.replace("/api/v1", ""))));
        for (const [status, answer] of Object.entries(operation.responses)) {
          for (const code of answer["x-codes"] ?? []) codes.set(code, status);
        }
      }
    }
    content.append(section);
  }
  const list = make("ul", { class: "codes" });
  for (const [code, status] of [...codes].sort()) {
    list.append(make("li", { id: `error-${code}` }, make("code", {}, code), " ", make("span", {}, status)));
  }
  content.append(make("section", {}, make("h2", {}, "Codes"), make("p", {}, "The code of a refusal stays the same where its words may change."), list));
  contents.append(make("h2", {}, "Codes"), make("a", { href: "#codes" }, make("span", {}, "All codes")));
  list.parentElement.id = "codes";
}

// Opens what the address points at.
function arrive() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.matches(".route")) target.open = true;
  for (const link of document.querySelectorAll("nav a")) link.classList.toggle("here", link.hash === location.hash);
  target.scrollIntoView();
}

document.querySelector("#search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const card of document.querySelectorAll(".route")) {
    card.hidden = !words.every((word) => card.dataset.words.includes(word));
    document.querySelector(`nav a[href="#${card.id}"]`).hidden = card.hidden;
  }
});

const signIn = document.querySelector("#sign-in");
const tellSession = () => document.querySelector("#session").classList.toggle("known", Boolean(signIn.elements.token.value));
signIn.elements.token.addEventListener("input", tellSession);
signIn.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password, token } = signIn.elements;
  const said = signIn.querySelector("output");
  if (!email.value) return;
  const answer = await fetch("/api/v1/auth/login", {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ email: email.value, password: password.value }),
  });
  const told = await answer.json();
  password.value = "";
  token.value = told.access_token ?? "";
  said.textContent = answer.ok ? `Signed in as ${told.user.display_name} for ${Math.round(told.expires_in / 60)} minutes.` : told.detail;
  tellSession();
});

addEventListener("hashchange", arrive);
fetch("/api/openapi.json").then((answer) => answer.json()).then((description) => {
  api = description;
  show();
  arrive();
}).catch((error) => document.querySelector("#content").replaceChildren(make("p", {}, `The description could not be read: ${error.message}`)));
