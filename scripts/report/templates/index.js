// Sorts the table of cases by the column whose heading is clicked: numbers as numbers, empty cells last.
"use strict";

const table = document.getElementById("cases");

function compare(a, b) {
  const numbers = [a, b].map(Number);
  return numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
}

function sortBy(column, heading) {
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
    return (ascending ? 1 : -1) * compare(value(a), value(b));
  });
  body.append(...rows);
}

[...table.tHead.rows[0].cells].forEach((heading, column) => {
  heading.querySelector("button")?.addEventListener("click", () => sortBy(column, heading));
});
