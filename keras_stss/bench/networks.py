def run(workers, kind, quick=False):
    raise NotImplementedError
