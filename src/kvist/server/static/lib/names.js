// What requests and sequences are called on the page.

/** "chatcmpl-64c090fa527c3968144e95e7" -> "chat 64c090"; somebody else's have no name. */
export function requestName(id) {
  if (!id) return "somebody else";
  const found = /^(chat|cmpl|resp)\w*[-_](\w{6})\w*(?:-(\d+))?$/.exec(id);
  if (!found) return id.length > 24 ? `${id.slice(0, 22)}…` : id;
  const kind = { chat: "chat", cmpl: "text", resp: "response" }[found[1]];
  return `${kind} ${found[2]}${found[3] ? ` no. ${Number(found[3]) + 1}` : ""}`;
}

/** The same of a sequence, with its branch where there are several. */
export function sequenceName({ request, index }) {
  return index ? `${requestName(request)}, branch ${index + 1}` : requestName(request);
}
