// A click on a training image tells what it is and which queries it counts for. Text only ever goes through textContent.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const dialog = document.getElementById("details");
  const svg = "http://www.w3.org/2000/svg";

  function element(tag, text, parent) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function picture(key, size, label) {
    const made = document.createElementNS(svg, "svg"), use = document.createElementNS(svg, "use");
    made.setAttribute("class", "pic");
    made.setAttribute("viewBox", "0 0 " + size[0] + " " + size[1]);
    if (label) { made.setAttribute("role", "img"); made.setAttribute("aria-label", label); }
    else made.setAttribute("aria-hidden", "true");
    use.setAttribute("href", "#" + key);
    made.append(use);
    return made;
  }

  function ordinal(number) {
    const ten = number % 10, hundred = number % 100;
    const ending = ten === 1 && hundred !== 11 ? "st" : ten === 2 && hundred !== 12 ? "nd" : ten === 3 && hundred !== 13 ? "rd" : "th";
    return number.toLocaleString("en") + ending;
  }

  function place(rank) {
    const fromEnd = data.count + 1 - rank;
    return rank <= fromEnd ? ordinal(rank) + " most supporting" : ordinal(fromEnd) + " most opposing";
  }

  function queryItem(list, entry) {
    const name = data.queries[entry[0]], link = element("a", null, element("li", null, list));
    link.href = "#q-" + entry[0];
    link.append(picture("q" + entry[0], data.querySize));
    const text = element("span", null, link);
    element("bdi", name, text);
    element("br", null, text);
    text.append(place(entry[1]) + " of " + data.count.toLocaleString("en") + " (score " + entry[2].toExponential(1) + ")");
    link.addEventListener("click", function () {
      dialog.close();
      const target = document.getElementById("q-" + entry[0]);
      setTimeout(function () { target.focus({ preventScroll: true }); }, 0);
    });
  }

  function show(number) {
    const image = data.images[number];
    dialog.replaceChildren();
    const top = element("div", null, dialog), heading = element("h2", null, top), close = element("button", "Close", top);
    top.className = "top";
    heading.id = "details-name";
    element("bdi", image.name, heading);
    close.type = "button";
    close.addEventListener("click", function () { dialog.close(); });
    dialog.append(picture("t" + number, data.size, image.name));
    if (image.class !== null) element("bdi", image.class, element("p", "Class: ", dialog));
    if (image.selfRank <= data.count / 10) element("p", ordinal(image.selfRank) + " most unusual of " + data.count.toLocaleString("en") + " training images.", dialog);
    element("h3", "Counts for", dialog);
    if (!image.queries.length) element("p", "It is among the first or the last for none of the images asked about.", dialog);
    const list = element("ol", null, dialog);
    list.className = "told";
    image.queries.forEach(function (entry) { queryItem(list, entry); });
    element("h3", "Most alike by influence", dialog);
    const alike = element("ul", null, dialog);
    image.alike.forEach(function (entry) {
      const item = element("li", null, alike);
      element("bdi", entry[0], item);
      item.append(" (cosine " + entry[1].toFixed(2) + ")");
    });
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", function (event) {
    const card = event.target.closest("[data-image]");
    if (card) show(card.dataset.image);
    else if (event.target === dialog) dialog.close();
  });
})();
