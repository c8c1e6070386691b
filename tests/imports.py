"""Define a contract for import-linter that lists what modules may import."""

import sys

from importlinter import Contract, ContractCheck, fields, output


class Only(Contract):
    """A contract: modules import only each other, the standard library and `allowed_modules`.

    Options in pyproject.toml:

        source_modules      the modules; a package stands for all modules below it
        allowed_modules     what else they may import; a package stands for all modules below it
    """

    source_modules = fields.ListField(subfield=fields.ModuleField())
    allowed_modules = fields.ListField(subfield=fields.StringField())

    def check(self, graph, verbose):
        allowed = [*(module.name for module in self.source_modules), *self.allowed_modules]
        found = [
            (importer, imported)
            for source in self.source_modules
            for importer in sorted({source.name} | _below(graph, source.name))
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not _standard(imported) and not any(_within(imported, name) for name in allowed)
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check):
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} may not import {imported}", bold=False)


def _below(graph, module):
    return set() if graph.is_module_squashed(module) else graph.find_descendants(module)


def _standard(module):
    return module.partition(".")[0] in sys.stdlib_module_names


def _within(module, package):
    return module == package or module.startswith(f"{package}.")
